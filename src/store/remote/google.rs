//! Google's access tokens: asked for once, renewed in time, and given up when a server refuses them.
//!
//! Problem: what signs requests asks for a token of a service account with every one, which is a journey more for each, and believes a token
//! that it holds until its time is over, though it may have been revoked. Idea: one place holds the token of all requests; who signs is
//! given it for a minute, and so comes back for the next one.
//!
//! Invariant: a token that was refused before it was ever accepted is not replaced at once, so that wrong credentials are told and not tried
//! for ever.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::HeaderValue;
use reqsign_core::time::Timestamp;
use reqsign_core::{Context, ProvideCredential, ProvideCredentialChain, SigningCredential};
use reqsign_google::{
    Credential, DefaultCredentialProvider, FileCredentialProvider, ServiceAccountTokenCredentialProvider,
};
use tokio::sync::Mutex;

use super::failure::Failed;

/// What tokens are asked for, as OpenDAL asks.
pub(super) const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_write";

/// For how long who signs may keep a token: less than he wants one to be good for.
const LENT_FOR: Duration = Duration::from_secs(60);

/// How long a token that was never accepted is the last word.
const REFUSAL_BELIEVED: Duration = Duration::from_secs(10);

/// The token of all requests to Google's.
pub(super) struct GoogleTokens {
    source: ProvideCredentialChain<Credential>,
    held: Mutex<Option<Held>>,
    is_accepted: AtomicBool,
}

struct Held {
    credential: Credential,
    since: Instant,
}

impl GoogleTokens {
    /// Those of the credential file, or of what Google's own tools would find.
    pub(super) fn new(credential_file: Option<&str>) -> Self {
        let source = ProvideCredentialChain::new();
        let source = match credential_file {
            Some(file) => source.push(FileCredentialProvider::new(file).with_scope(SCOPE)),
            None => source.push(DefaultCredentialProvider::builder().build()),
        };
        Self { source, held: Mutex::default(), is_accepted: AtomicBool::new(false) }
    }

    /// What requests are signed with.
    pub(super) fn lender(self: &Arc<Self>) -> ProvideCredentialChain<Credential> {
        ProvideCredentialChain::new().push(Lender(self.clone()))
    }

    async fn lend(&self, context: &Context) -> reqsign_core::Result<Option<Credential>> {
        let mut held = self.held.lock().await;
        if let Some(known) = held.as_ref().filter(|known| known.credential.is_valid()) {
            return Ok(Some(lent(&known.credential)));
        }
        let told = self.source.provide_credential(context).await?;
        let credential = match told {
            Some(Credential { service_account: Some(account), token: None, .. }) => {
                let exchange = ServiceAccountTokenCredentialProvider::new(account).with_scope(SCOPE);
                exchange.provide_credential(context).await?
            }
            told => told,
        };
        self.is_accepted.store(false, Ordering::Relaxed);
        *held = credential.clone().map(|credential| Held { credential, since: Instant::now() });
        Ok(credential.as_ref().map(lent))
    }

    /// What a request that was sent with `used` came to: a failure that passes, with the next token, where that one is good no more.
    pub(super) async fn judge<T>(
        &self,
        used: Option<&HeaderValue>,
        outcome: Result<T, Failed>,
    ) -> Result<T, Failed> {
        match outcome {
            Err(failed) if failed.is_unknown_token => {
                let is_passing = self.is_replaced(used).await;
                Err(Failed { is_passing, ..failed })
            }
            outcome => {
                if outcome.is_ok() && !self.is_accepted.load(Ordering::Relaxed) {
                    self.is_accepted.store(true, Ordering::Relaxed);
                }
                outcome
            }
        }
    }

    /// Gives up a token that was refused. Whether there may be a better one.
    async fn is_replaced(&self, used: Option<&HeaderValue>) -> bool {
        let mut held = self.held.lock().await;
        let Some(known) = held.as_ref() else { return true };
        let token = known.credential.token.as_ref().map(|token| format!("Bearer {}", token.access_token));
        if used.map(HeaderValue::as_bytes) != token.as_ref().map(String::as_bytes) {
            return true;
        }
        if !self.is_accepted.load(Ordering::Relaxed) && known.since.elapsed() < REFUSAL_BELIEVED {
            return false;
        }
        tracing::debug!("Google's access token is refused, another one is asked for");
        *held = None;
        true
    }
}

impl fmt::Debug for GoogleTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GoogleTokens").finish_non_exhaustive()
    }
}

/// The same, which ends soon.
fn lent(credential: &Credential) -> Credential {
    let mut credential = credential.clone();
    if let Some(token) = &mut credential.token {
        let soon = Timestamp::now() + LENT_FOR;
        token.expires_at = Some(token.expires_at.map_or(soon, |end| end.min(soon)));
    }
    credential
}

/// Hands the tokens on.
#[derive(Debug)]
struct Lender(Arc<GoogleTokens>);

impl ProvideCredential for Lender {
    type Credential = Credential;

    async fn provide_credential(&self, context: &Context) -> reqsign_core::Result<Option<Credential>> {
        self.0.lend(context).await
    }
}
