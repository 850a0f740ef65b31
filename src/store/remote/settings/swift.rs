//! Access to a container of Swift, or to an account, and the ways to a token.

use super::super::clouds;
use super::super::engine::Limits;
use super::super::http::Access;
use super::{Env, Secret, check_plain};
use crate::cinder_conf::backup::Swift;
use crate::error::{Error, ErrorKind, Result};

/// Keystone's own name for the domain that is meant when none is said.
const DOMAIN_ID: &str = "default";

/// The ways to a token that are supported, as keystoneauth names them; one of them fits what is set where there is none.
const AUTH_TYPES: [&str; 5] = ["", "password", "v3password", "v3applicationcredential", "v1password"];

/// Access to OpenStack Swift.
#[derive(Clone, Debug)]
pub struct SwiftSettings {
    /// The container; without it the account, whose containers are folders.
    pub container: Option<String>,
    /// How a token is got.
    pub auth: SwiftAuth,
    /// The account's URL, where it is not the one that authentication gives.
    pub storage_url: Option<String>,
    /// What the project's id is added to for the account's URL: `backup_swift_url`.
    pub storage_url_prefix: Option<String>,
    /// Region to take from the catalogue.
    pub region: Option<String>,
    /// Which of the catalogue's endpoints is meant: `public`, `internal` or `admin`; the public one where there is none.
    pub interface: Option<String>,
    /// How servers are reached.
    pub access: Access,
    /// How hard they are tried.
    pub limits: Limits,
}

/// How a token is got.
#[derive(Clone, Debug)]
pub enum SwiftAuth {
    /// Somebody has got one already.
    Token {
        /// It.
        token: Secret,
        /// The account it is for.
        storage_url: String,
    },
    /// Tempauth, and what speaks like it.
    V1 {
        /// Where to ask.
        url: String,
        /// `account:user`.
        user: String,
        /// Its key.
        key: Secret,
    },
    /// Keystone.
    V3 {
        /// Where to ask, with or without `/v3`.
        url: String,
        /// Who asks.
        identity: Identity,
    },
}

impl SwiftSettings {
    /// Refuses URLs that hold credentials, see [`check_plain`].
    pub(in crate::store::remote) fn check_urls(&self) -> Result<()> {
        match &self.auth {
            SwiftAuth::Token { storage_url, .. } => check_plain("the storage URL", storage_url)?,
            SwiftAuth::V1 { url, .. } | SwiftAuth::V3 { url, .. } => {
                check_plain("the authentication URL", url)?;
            }
        }
        for url in [&self.storage_url, &self.storage_url_prefix].into_iter().flatten() {
            check_plain("the storage URL", url)?;
        }
        Ok(())
    }
}

impl SwiftAuth {
    /// Whether another token can be got.
    pub(in crate::store::remote) fn is_renewable(&self) -> bool {
        !matches!(self, Self::Token { .. })
    }
}

/// Who asks Keystone.
#[derive(Clone, Debug)]
pub enum Identity {
    /// A user with a password.
    Password {
        /// Name.
        user: String,
        /// Id, which goes before the name.
        user_id: Option<String>,
        /// Whose user it is.
        user_domain: Domain,
        /// Password.
        password: Secret,
        /// Name of the project; the user's default one where there is neither name nor id.
        project: Option<String>,
        /// Id of the project, which goes before its name.
        project_id: Option<String>,
        /// Whose project it is.
        project_domain: Domain,
    },
    /// An application credential, which has its project in it.
    ApplicationCredential {
        /// Id, which goes before the name.
        id: Option<String>,
        /// Name.
        name: Option<String>,
        /// The user it belongs to, for a name.
        user: Option<String>,
        /// Whose user that is.
        user_domain: Domain,
        /// Secret.
        secret: Secret,
    },
}

/// A Keystone domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Domain {
    /// By its id.
    Id(String),
    /// By its name.
    Name(String),
}

impl SwiftSettings {
    /// A container of the account that the environment or, with `OS_CLOUD`, a `clouds.yaml` says. [`ErrorKind::AccessDenied`] when neither does.
    pub fn from_env(container: Option<&str>, env: Env<'_>) -> Result<Self> {
        let mut settings = match env("OS_CLOUD") {
            Some(cloud) => {
                let words = clouds::read(&cloud, env)?;
                Self::from_words(&|word| words.get(word).cloned(), Told::Cloud)
                    .map_err(|error| error.context(format!("cloud {cloud:?} of clouds.yaml")))?
            }
            None => Self::from_words(
                &|word| match word {
                    "auth_url" => env("OS_AUTH_URL").or_else(|| env("ST_AUTH")),
                    "username" => env("OS_USERNAME").or_else(|| env("ST_USER")),
                    "password" => env("OS_PASSWORD").or_else(|| env("ST_KEY")),
                    "identity_api_version" if env("OS_AUTH_URL").is_none() && env("ST_AUTH").is_some() => {
                        Some("1".to_owned())
                    }
                    "project_name" => env("OS_PROJECT_NAME").or_else(|| env("OS_TENANT_NAME")),
                    "project_id" => env("OS_PROJECT_ID").or_else(|| env("OS_TENANT_ID")),
                    "token" => env("OS_AUTH_TOKEN").or_else(|| env("OS_TOKEN")),
                    _ => env(&Told::Environment.name(word)),
                },
                Told::Environment,
            )?,
        };
        settings.container = container.map(str::to_owned);
        Ok(settings)
    }

    /// Words as OpenStack's tools know them, in lower case and without `OS_`.
    fn from_words(word: Env<'_>, told: Told) -> Result<Self> {
        let is_yes = |text: String| matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Ok(Self {
            container: None,
            auth: auth_of(word, told)?,
            storage_url: word("storage_url"),
            storage_url_prefix: None,
            region: word("region_name"),
            interface: ["object_store_interface", "interface", "endpoint_type"]
                .into_iter()
                .find_map(word)
                .map(|interface| interface_of(&interface))
                .transpose()?,
            access: Access {
                ca_file: word("cacert").map(Into::into),
                is_insecure: word("insecure").is_some_and(is_yes),
                proxy: None,
            },
            limits: Limits::default(),
        })
    }

    /// As cinder-backup is told. With `backup_swift_auth = per_user` it writes with the token of whoever asks for a backup, so who we
    /// are is what the environment says.
    pub fn from_conf(conf: &Swift, container: Option<&str>, env: Env<'_>) -> Result<Self> {
        let mut settings = if conf.is_single_user {
            let needed = |value: Option<String>, option: &str| {
                value.ok_or_else(|| Error::new(ErrorKind::Usage, format!("{option} is not set")))
            };
            let url = needed(conf.auth_url.clone(), "backup_swift_auth_url")?;
            let user = needed(conf.user.clone(), "backup_swift_user")?;
            let key = conf.key.clone().ok_or_else(|| {
                Error::new(ErrorKind::Usage, "backup_swift_key is not set, and the driver needs it")
            })?;
            let domain = |name: &Option<String>| match name {
                Some(name) => Domain::Name(name.clone()),
                None => Domain::Id(DOMAIN_ID.to_owned()),
            };
            let auth = match conf.auth_version {
                1 => SwiftAuth::V1 { url, user, key },
                3 => {
                    let identity = Identity::Password {
                        user,
                        user_id: None,
                        user_domain: domain(&conf.user_domain),
                        password: key,
                        project: conf.project.clone(),
                        project_id: None,
                        project_domain: domain(&conf.project_domain),
                    };
                    SwiftAuth::V3 { url, identity }
                }
                version => {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        format!("backup_swift_auth_version = {version}, only 1 and 3 are supported"),
                    ));
                }
            };
            Self {
                container: None,
                auth,
                storage_url: None,
                storage_url_prefix: None,
                region: conf.region.clone(),
                // What swiftclient takes, since Cinder tells it none.
                interface: None,
                access: Access::default(),
                limits: Limits::default(),
            }
        } else {
            let mut settings = Self::from_env(None, env).map_err(|error| {
                error.context("backup_swift_auth is per_user, so the environment has to say which user's backups are meant")
            })?;
            if settings.storage_url.is_none() {
                settings.storage_url_prefix = conf.storage_url.clone();
            }
            if settings.interface.is_none() {
                settings.interface = conf.interface.as_deref().map(interface_of).transpose()?;
            }
            settings
        };
        settings.container = container.map(str::to_owned);
        if conf.ca_file.is_some() {
            settings.access.ca_file.clone_from(&conf.ca_file);
        }
        settings.access.is_insecure |= conf.is_insecure;
        Ok(settings)
    }
}

/// The catalogue's word for an interface, which older tools call `publicURL`.
fn interface_of(word: &str) -> Result<String> {
    let lower = word.to_ascii_lowercase();
    let interface = lower.strip_suffix("url").unwrap_or(&lower);
    if matches!(interface, "public" | "internal" | "admin") {
        return Ok(interface.to_owned());
    }
    let message = format!("interface {word:?}, expected public, internal or admin");
    Err(Error::new(ErrorKind::Usage, message))
}

/// Where words are from, for the names that messages give them.
#[derive(Clone, Copy)]
enum Told {
    /// The environment.
    Environment,
    /// A cloud of a `clouds.yaml`.
    Cloud,
}

impl Told {
    fn name(self, word: &str) -> String {
        match (self, word) {
            (Self::Environment, _) => format!("OS_{}", word.to_ascii_uppercase()),
            (Self::Cloud, "identity_api_version" | "auth_type") => word.to_owned(),
            (Self::Cloud, _) => format!("auth.{word}"),
        }
    }
}

fn auth_of(word: Env<'_>, told: Told) -> Result<SwiftAuth> {
    let missing = |word: &str| {
        Error::new(ErrorKind::AccessDenied, format!("{} is not set; Swift needs it", told.name(word)))
    };
    if let (Some(token), Some(storage_url)) = (word("token"), word("storage_url")) {
        return Ok(SwiftAuth::Token { token: Secret::new(token), storage_url });
    }
    let Some(url) = word("auth_url") else {
        return Err(match told {
            Told::Cloud => missing("auth_url"),
            Told::Environment => Error::new(
                ErrorKind::AccessDenied,
                "no credentials for Swift; set OS_CLOUD, or OS_AUTH_URL with OS_USERNAME and OS_PASSWORD or an application credential",
            ),
        });
    };
    let domain = |name: &str, id: &str| {
        let default = || word("default_domain_id").or_else(|| word("default_domain"));
        match (word(id), word(name)) {
            (Some(id), _) => Domain::Id(id),
            (None, Some(name)) => Domain::Name(name),
            (None, None) => Domain::Id(default().unwrap_or_else(|| DOMAIN_ID.to_owned())),
        }
    };
    let kind = word("auth_type").unwrap_or_default();
    if !AUTH_TYPES.contains(&&*kind) {
        let message = format!(
            "{} is {kind:?}; only password, v3applicationcredential and v1password are supported",
            told.name("auth_type")
        );
        return Err(Error::new(ErrorKind::Usage, message));
    }
    let version = word("identity_api_version").or_else(|| word("auth_version")).unwrap_or_default();
    let secret = word("application_credential_secret");
    if kind == "v3applicationcredential" || secret.is_some() {
        let (id, name) = (word("application_credential_id"), word("application_credential_name"));
        if id.is_none() && (name.is_none() || word("username").is_none()) {
            return Err(missing("application_credential_id"));
        }
        let secret = secret.ok_or_else(|| missing("application_credential_secret"))?;
        let identity = Identity::ApplicationCredential {
            id,
            name,
            user: word("username"),
            user_domain: domain("user_domain_name", "user_domain_id"),
            secret: Secret::new(secret),
        };
        return Ok(SwiftAuth::V3 { url, identity });
    }
    let password = || word("password").map(Secret::new).ok_or_else(|| missing("password"));
    match version.split('.').next().unwrap_or_default() {
        "1" => {
            let user = word("username").ok_or_else(|| missing("username"))?;
            Ok(SwiftAuth::V1 { url, user, key: password()? })
        }
        _ if kind == "v1password" => {
            let user = word("username").ok_or_else(|| missing("username"))?;
            Ok(SwiftAuth::V1 { url, user, key: password()? })
        }
        "" | "3" => {
            let user_id = word("user_id");
            let user = word("username").or_else(|| user_id.clone()).ok_or_else(|| missing("username"))?;
            let identity = Identity::Password {
                user,
                user_id,
                user_domain: domain("user_domain_name", "user_domain_id"),
                password: password()?,
                project: word("project_name"),
                project_id: word("project_id"),
                project_domain: domain("project_domain_name", "project_domain_id"),
            };
            Ok(SwiftAuth::V3 { url, identity })
        }
        other => Err(Error::new(
            ErrorKind::Usage,
            format!("{} is {other:?}; only 1 and 3 are supported", told.name("identity_api_version")),
        )),
    }
}
