//! What is needed to reach each kind of store, and where it is said.
//!
//! Problem: credentials are in the environment as each vendor's own tools read it, in a `clouds.yaml`, or in the cinder.conf; on a command line
//! everybody could see them. Idea: one type for each kind of store, made from any of these. The environment is a function, so that
//! tests need none.
//!
//! Invariant: a secret is a [`Secret`], which no message shows.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::engine::Limits;
use super::http::Access;
use super::{aws_config, clouds};
pub use crate::cinder_conf::backup::Secret;
use crate::cinder_conf::backup::{BackupConf, Driver, Gcs, S3, Swift};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Store;

/// The region that S3 signatures name unless told.
const REGION: &str = "us-east-1";

/// Keystone's own name for the domain that is meant when none is said.
const DOMAIN_ID: &str = "default";

/// A variable of the environment; `None` where it is unset or empty.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's own environment.
pub fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What is needed to reach a store of whichever kind.
#[derive(Clone, Debug)]
pub enum Settings {
    /// A container of Swift, or an account.
    Swift(Box<SwiftSettings>),
    /// An S3 bucket.
    S3(Box<S3Settings>),
    /// A bucket of Google Cloud Storage.
    Gcs(Box<GcsSettings>),
}

impl Settings {
    /// What a cinder.conf says about a store behind HTTP; `None` when its driver writes to files.
    pub fn from_conf(conf: &BackupConf, env: Env<'_>) -> Option<Result<Self>> {
        match &conf.driver {
            Driver::Swift(swift) => {
                // An account of Cinder's own holds what was written with `--container` as well; a user's holds anything.
                let container = conf.container.as_deref().filter(|_| !swift.is_single_user);
                let settings = SwiftSettings::from_conf(swift, container, env);
                Some(settings.map(|settings| Self::Swift(Box::new(settings))))
            }
            Driver::S3(s3) => Some(Ok(Self::S3(Box::new(S3Settings::from_conf(s3, env))))),
            Driver::Gcs(gcs) => Some(Ok(Self::Gcs(Box::new(GcsSettings::from_conf(gcs))))),
            Driver::Posix { .. } | Driver::Nfs(_) | Driver::Glusterfs(_) => None,
        }
    }

    /// The store. Nothing is asked of its server yet.
    pub fn open(&self) -> Result<Arc<dyn Store>> {
        match self {
            Self::Swift(settings) => super::swift((**settings).clone()),
            Self::S3(settings) => super::s3((**settings).clone()),
            Self::Gcs(settings) => super::gcs((**settings).clone()),
        }
    }

    /// The same, tried for so long.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        let limits = match &mut self {
            Self::Swift(settings) => &mut settings.limits,
            Self::S3(settings) => &mut settings.limits,
            Self::Gcs(settings) => &mut settings.limits,
        };
        limits.deadline = deadline;
        self
    }

    /// Files and folders that are read again while the store is in use, to renew credentials.
    pub fn read_again(&self, env: Env<'_>) -> Vec<PathBuf> {
        let home = || env("HOME").map(PathBuf::from);
        match self {
            Self::Gcs(settings) if settings.is_anonymous => Vec::new(),
            Self::Gcs(settings) => match &settings.credential_file {
                Some(file) => vec![file.into()],
                None => home().map(|home| home.join(".config/gcloud")).into_iter().collect(),
            },
            Self::S3(settings) if settings.keys.is_some() => Vec::new(),
            Self::S3(_) => {
                let named = ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"];
                let mut paths: Vec<PathBuf> = named.into_iter().filter_map(env).map(PathBuf::from).collect();
                paths.extend(home().map(|home| home.join(".aws")));
                // What mounts such a file into a container replaces its whole folder.
                let token = env("AWS_WEB_IDENTITY_TOKEN_FILE").map(PathBuf::from);
                paths.extend(token.and_then(|token| token.parent().map(Path::to_owned)));
                paths
            }
            Self::Swift(_) => Vec::new(),
        }
    }
}

/// Access to an S3 bucket.
#[derive(Clone, Debug)]
pub struct S3Settings {
    /// Its name.
    pub bucket: String,
    /// Where the server listens; Amazon's where there is none.
    pub endpoint: Option<String>,
    /// The region that signatures name.
    pub region: String,
    /// Access key and secret key; without them what AWS's own tools would find in their files.
    pub keys: Option<(Secret, Secret)>,
    /// What goes with keys that are for a while only.
    pub session_token: Option<Secret>,
    /// Algorithm and key that objects are encrypted with by the server (SSE-C).
    pub customer_key: Option<(String, Secret)>,
    /// How the server is reached.
    pub access: Access,
    /// How hard it is tried.
    pub limits: Limits,
}

impl S3Settings {
    /// A bucket by its name, everything else as the environment says.
    pub fn from_env(bucket: &str, endpoint: Option<String>, region: Option<String>, env: Env<'_>) -> Self {
        let endpoint = endpoint.or_else(|| env("AWS_ENDPOINT_URL_S3")).or_else(|| env("AWS_ENDPOINT_URL"));
        let region = region.or_else(|| aws_config::region(env));
        Self {
            bucket: bucket.to_owned(),
            endpoint,
            region: region.unwrap_or_else(|| REGION.to_owned()),
            keys: env("AWS_ACCESS_KEY_ID")
                .zip(env("AWS_SECRET_ACCESS_KEY"))
                .map(|(a, s)| (Secret::new(a), Secret::new(s))),
            session_token: env("AWS_SESSION_TOKEN").map(Secret::new),
            customer_key: None,
            access: Access { ca_file: env("AWS_CA_BUNDLE").map(Into::into), ..Access::default() },
            limits: Limits::default(),
        }
    }

    /// As cinder-backup is told.
    pub fn from_conf(conf: &S3, env: Env<'_>) -> Self {
        // boto3 takes the region from its own configuration, since Cinder has no option for it.
        let region = aws_config::region(env);
        Self {
            bucket: conf.bucket.clone(),
            endpoint: Some(conf.endpoint.clone()),
            region: region.unwrap_or_else(|| REGION.to_owned()),
            keys: Some((conf.access_key.clone(), conf.secret_key.clone())),
            session_token: None,
            customer_key: conf.customer_key.clone(),
            access: Access { ca_file: conf.ca_file.clone(), is_insecure: !conf.verifies_tls, proxy: None },
            limits: Limits { connections: connections(conf.connections), ..Limits::default() },
        }
    }
}

/// Access to a bucket of Google Cloud Storage.
#[derive(Clone, Debug)]
pub struct GcsSettings {
    /// Its name.
    pub bucket: String,
    /// Where the server listens; Google's where there is none.
    pub endpoint: Option<String>,
    /// The service account's file; without it what Google's own tools would find.
    pub credential_file: Option<String>,
    /// Whether requests are sent without credentials, as emulators take them.
    pub is_anonymous: bool,
    /// How the server is reached.
    pub access: Access,
    /// How hard it is tried.
    pub limits: Limits,
}

impl GcsSettings {
    /// A bucket by its name, everything else as the environment says.
    pub fn from_env(bucket: &str, endpoint: Option<String>, env: Env<'_>) -> Self {
        let emulator = env("STORAGE_EMULATOR_HOST");
        let emulator =
            emulator.map(|host| if host.contains("://") { host } else { format!("http://{host}") });
        let endpoint = endpoint.or(emulator);
        let credential_file = env("GOOGLE_APPLICATION_CREDENTIALS");
        Self {
            bucket: bucket.to_owned(),
            is_anonymous: endpoint.is_some() && credential_file.is_none(),
            endpoint,
            credential_file,
            access: Access { ca_file: env("SSL_CERT_FILE").map(Into::into), ..Access::default() },
            limits: Limits::default(),
        }
    }

    /// As cinder-backup is told.
    pub fn from_conf(conf: &Gcs) -> Self {
        Self {
            bucket: conf.bucket.clone(),
            endpoint: None,
            credential_file: conf.credential_file.as_ref().map(|file| file.to_string_lossy().into_owned()),
            is_anonymous: false,
            access: Access { proxy: conf.proxy.clone(), ..Access::default() },
            limits: Limits::default(),
        }
    }
}

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
    pub(super) fn check_urls(&self) -> Result<()> {
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
    pub(super) fn is_renewable(&self) -> bool {
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
    /// A container of the account that the environment or, with `OS_CLOUD`, a `clouds.yaml` says. [`ErrorKind::Usage`] when neither does.
    pub fn from_env(container: Option<&str>, env: Env<'_>) -> Result<Self> {
        let mut settings = match env("OS_CLOUD") {
            Some(cloud) => {
                let words = clouds::read(&cloud, env)?;
                Self::from_words(&|word| words.get(word).cloned())
                    .map_err(|error| error.context(format!("cloud {cloud:?} of clouds.yaml")))?
            }
            None => Self::from_words(&|word| match word {
                "auth_url" => env("OS_AUTH_URL").or_else(|| env("ST_AUTH")),
                "username" => env("OS_USERNAME").or_else(|| env("ST_USER")),
                "password" => env("OS_PASSWORD").or_else(|| env("ST_KEY")),
                "identity_api_version" if env("OS_AUTH_URL").is_none() && env("ST_AUTH").is_some() => {
                    Some("1".to_owned())
                }
                "project_name" => env("OS_PROJECT_NAME").or_else(|| env("OS_TENANT_NAME")),
                "project_id" => env("OS_PROJECT_ID").or_else(|| env("OS_TENANT_ID")),
                "token" => env("OS_AUTH_TOKEN").or_else(|| env("OS_TOKEN")),
                _ => env(&format!("OS_{}", word.to_ascii_uppercase())),
            })?,
        };
        settings.container = container.map(str::to_owned);
        Ok(settings)
    }

    /// Words as OpenStack's tools know them, in lower case and without `OS_`.
    fn from_words(word: Env<'_>) -> Result<Self> {
        let is_yes = |text: String| matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        Ok(Self {
            container: None,
            auth: auth_of(word)?,
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
            let key = conf.key.clone().unwrap_or_else(|| Secret::new(""));
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
                        ErrorKind::Unsupported,
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

fn auth_of(word: Env<'_>) -> Result<SwiftAuth> {
    let missing = |what: &str| Error::new(ErrorKind::Usage, format!("{what} is not set; Swift needs it"));
    if let (Some(token), Some(storage_url)) = (word("token"), word("storage_url")) {
        return Ok(SwiftAuth::Token { token: Secret::new(token), storage_url });
    }
    let Some(url) = word("auth_url") else {
        return Err(Error::new(
            ErrorKind::Usage,
            "no credentials for Swift; set OS_CLOUD, or OS_AUTH_URL with OS_USERNAME and OS_PASSWORD or an application credential",
        ));
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
    let version = word("identity_api_version").or_else(|| word("auth_version")).unwrap_or_default();
    let secret = word("application_credential_secret");
    if kind == "v3applicationcredential" || secret.is_some() {
        let (id, name) = (word("application_credential_id"), word("application_credential_name"));
        if id.is_none() && (name.is_none() || word("username").is_none()) {
            return Err(missing("OS_APPLICATION_CREDENTIAL_ID"));
        }
        let secret = secret.ok_or_else(|| missing("OS_APPLICATION_CREDENTIAL_SECRET"))?;
        let identity = Identity::ApplicationCredential {
            id,
            name,
            user: word("username"),
            user_domain: domain("user_domain_name", "user_domain_id"),
            secret: Secret::new(secret),
        };
        return Ok(SwiftAuth::V3 { url, identity });
    }
    let password = || word("password").map(Secret::new).ok_or_else(|| missing("OS_PASSWORD"));
    match version.split('.').next().unwrap_or_default() {
        "1" => {
            let user = word("username").ok_or_else(|| missing("OS_USERNAME"))?;
            Ok(SwiftAuth::V1 { url, user, key: password()? })
        }
        _ if kind == "v1password" => {
            let user = word("username").ok_or_else(|| missing("OS_USERNAME"))?;
            Ok(SwiftAuth::V1 { url, user, key: password()? })
        }
        "" | "3" => {
            let user_id = word("user_id");
            let user = word("username").or_else(|| user_id.clone()).ok_or_else(|| missing("OS_USERNAME"))?;
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
            ErrorKind::Unsupported,
            format!("version {other:?} of Swift's authentication; only 1 and 3 are supported"),
        )),
    }
}

/// Refuses a URL that has a user or a password in it: messages and the mount table quote URLs. [`ErrorKind::Usage`], without quoting it.
pub(super) fn check_plain(what: &str, url: &str) -> Result<()> {
    let is_plain = match reqwest::Url::parse(url) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => {
            url.username().is_empty() && url.password().is_none()
        }
        // `user:password@host` is a URL of the scheme `user`.
        _ => !url.contains('@'),
    };
    if is_plain {
        return Ok(());
    }
    let message = format!("{what} has a user or a password in it, which all users of this machine could see");
    Err(Error::new(ErrorKind::Usage, message))
}

fn connections(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX).clamp(1, 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(of: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| of.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    fn swift(of: &[(&str, &str)]) -> Result<SwiftSettings> {
        SwiftSettings::from_env(Some("c"), &env(of))
    }

    #[test]
    fn the_environment_is_read_as_openstacks_tools_do() {
        let base = [("OS_AUTH_URL", "http://k"), ("OS_USERNAME", "u"), ("OS_PASSWORD", "s3cret")];
        let settings =
            swift(&[&base[..], &[("OS_PROJECT_NAME", "p"), ("OS_USER_DOMAIN_NAME", "D")]].concat()).unwrap();
        assert!(!format!("{settings:?}").contains("s3cret"));
        let SwiftAuth::V3 {
            identity: Identity::Password { project, user_domain, project_domain, .. }, ..
        } = settings.auth
        else {
            panic!()
        };
        assert_eq!((project.as_deref(), user_domain), (Some("p"), Domain::Name("D".into())));
        assert_eq!(project_domain, Domain::Id("default".into()));
        let v1 = swift(&[&base[..], &[("OS_IDENTITY_API_VERSION", "1")]].concat()).unwrap();
        assert!(matches!(v1.auth, SwiftAuth::V1 { .. }));
        let v1 = swift(&[("ST_AUTH", "http://s/auth/v1.0"), ("ST_USER", "t:u"), ("ST_KEY", "k")]).unwrap();
        assert!(matches!(v1.auth, SwiftAuth::V1 { .. }));
        let credential = [
            ("OS_AUTH_URL", "http://k"),
            ("OS_AUTH_TYPE", "v3applicationcredential"),
            ("OS_APPLICATION_CREDENTIAL_ID", "i"),
            ("OS_APPLICATION_CREDENTIAL_SECRET", "s"),
        ];
        let settings = swift(&credential).unwrap();
        assert!(matches!(
            settings.auth,
            SwiftAuth::V3 { identity: Identity::ApplicationCredential { .. }, .. }
        ));
        let token = swift(&[("OS_AUTH_TOKEN", "t"), ("OS_STORAGE_URL", "http://s/v1/a")]).unwrap();
        assert!(matches!(token.auth, SwiftAuth::Token { .. }));
    }

    #[test]
    fn urls_with_passwords_are_refused_and_not_quoted() {
        let check = |settings: Settings| {
            let error = settings.open().map(|store| store.location().to_owned()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        };
        let mut wrong = vec!["user:hunter2@h:1", "http://user:hunter2@h:99999", "http:/user:hunter2@h"];
        wrong.extend(["https://user:hunter2@h/v1", "http://hunter2@h", "http://:hunter2@h:1"]);
        for url in wrong {
            let words = [("AWS_ENDPOINT_URL", url), ("STORAGE_EMULATOR_HOST", url)];
            check(Settings::S3(Box::new(S3Settings::from_env("b", None, None, &env(&words)))));
            // Without `://` it is taken for a host.
            if !url.starts_with("http:/u") {
                check(Settings::Gcs(Box::new(GcsSettings::from_env("b", None, &env(&words)))));
            }
            let user = [("OS_USERNAME", "u"), ("OS_PASSWORD", "p"), ("OS_AUTH_URL", url)];
            check(Settings::Swift(Box::new(swift(&user).unwrap())));
            let user = [("OS_USERNAME", "u"), ("OS_PASSWORD", "p"), ("OS_AUTH_URL", "http://k")];
            check(Settings::Swift(Box::new(
                swift(&[&user[..], &[("OS_STORAGE_URL", url)]].concat()).unwrap(),
            )));
            check(Settings::Swift(Box::new(
                swift(&[("OS_AUTH_TOKEN", "t"), ("OS_STORAGE_URL", url)]).unwrap(),
            )));
            let text = format!(
                "[DEFAULT]\nbackup_driver = cinder.backup.drivers.s3\nbackup_s3_endpoint_url = {url}\n\
                 backup_s3_store_access_key = a\nbackup_s3_store_secret_key = b\n"
            );
            let conf = crate::cinder_conf::CinderConf::from_text(&text).unwrap().backup().unwrap();
            check(Settings::from_conf(&conf, &env(&[])).unwrap().unwrap());
            let text = format!("[DEFAULT]\nbackup_swift_url = {url}\n");
            let conf = crate::cinder_conf::CinderConf::from_text(&text).unwrap().backup().unwrap();
            check(Settings::from_conf(&conf, &env(&user)).unwrap().unwrap());
        }
        for url in ["http://h:1/v1/AUTH_a@b", "https://h", "h:9000", "http://[::1]:8080/"] {
            assert!(check_plain("it", url).is_ok(), "{url}");
        }
        let gcs = "[DEFAULT]\nbackup_driver = cinder.backup.drivers.gcs\nbackup_gcs_bucket = b\n\
                   backup_gcs_proxy_url = http://u:hunter2@p\n";
        let conf = crate::cinder_conf::CinderConf::from_text(gcs).unwrap().backup().unwrap();
        let settings = Settings::from_conf(&conf, &env(&[])).unwrap().unwrap();
        assert!(!format!("{settings:?}").contains("hunter2"), "{settings:?}");
    }

    #[test]
    fn the_interface_is_as_told() {
        let base = [("OS_AUTH_URL", "http://k"), ("OS_USERNAME", "u"), ("OS_PASSWORD", "p")];
        let of = |more: &[(&str, &str)]| swift(&[&base[..], more].concat());
        assert_eq!(of(&[]).unwrap().interface, None);
        for (name, value, expected) in [
            ("OS_INTERFACE", "internal", "internal"),
            ("OS_INTERFACE", "adminURL", "admin"),
            ("OS_ENDPOINT_TYPE", "internalURL", "internal"),
        ] {
            assert_eq!(of(&[(name, value)]).unwrap().interface.as_deref(), Some(expected));
        }
        assert_eq!(of(&[("OS_INTERFACE", "inner")]).unwrap_err().kind(), ErrorKind::Usage);
        let conf = |text: &str, more: &[(&str, &str)]| {
            let text = format!("[DEFAULT]\nswift_catalog_info = {text}\n");
            let conf = crate::cinder_conf::CinderConf::from_text(&text).unwrap().backup()?;
            match Settings::from_conf(&conf, &env(&[&base[..], more].concat())).unwrap()? {
                Settings::Swift(swift) => Ok(swift.interface),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(conf("object-store:swift:internalURL", &[]).unwrap().as_deref(), Some("internal"));
        let here = [("OS_INTERFACE", "public")];
        assert_eq!(conf("object-store:swift:internalURL", &here).unwrap().as_deref(), Some("public"));
        for wrong in ["object-store:publicURL", "objects:swift:publicURL", "object-store:swift:x"] {
            let error: Error = conf(wrong, &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{wrong}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        for (of, named) in [
            (&[][..], "OS_CLOUD"),
            (&[("OS_AUTH_URL", "http://k")][..], "OS_USERNAME"),
            (&[("OS_AUTH_URL", "http://k"), ("OS_USERNAME", "u")][..], "OS_PASSWORD"),
            (
                &[("OS_AUTH_URL", "http://k"), ("OS_AUTH_TYPE", "v3applicationcredential")][..],
                "OS_APPLICATION_CREDENTIAL_ID",
            ),
        ] {
            let error = swift(of).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(error.to_string().contains(named), "{error}");
        }
        let v2 = [("OS_AUTH_URL", "x"), ("OS_IDENTITY_API_VERSION", "2.0")];
        assert_eq!(swift(&v2).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn connections_are_as_many_as_the_pool_of_the_cinder_conf() {
        let limits = |more: &str| {
            let text = format!(
                "[DEFAULT]\nbackup_driver = cinder.backup.drivers.s3\nbackup_s3_endpoint_url = http://h\n\
                 backup_s3_store_access_key = a\nbackup_s3_store_secret_key = b\n{more}"
            );
            let conf = crate::cinder_conf::CinderConf::from_text(&text).unwrap().backup().unwrap();
            match Settings::from_conf(&conf, &env(&[])).unwrap().unwrap() {
                Settings::S3(s3) => s3.limits,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(limits("").connections, 10, "boto3's own");
        assert_eq!(limits("backup_s3_max_pool_connections = 3\n").connections, 3);
        assert_eq!(limits("backup_s3_max_pool_connections = 0\n").connections, 1);
        assert_eq!(limits("backup_s3_max_pool_connections = 100000\n").connections, 64);
        assert_eq!(limits("backup_s3_timeout = 1\n").deadline, Limits::default().deadline);
    }

    #[test]
    fn buckets_take_their_servers_from_the_environment_unless_told() {
        let words = [("AWS_ENDPOINT_URL", "http://e"), ("AWS_DEFAULT_REGION", "r"), ("AWS_CA_BUNDLE", "/ca")];
        let s3 = S3Settings::from_env("b", None, None, &env(&words));
        assert_eq!((s3.endpoint.as_deref(), s3.region.as_str()), (Some("http://e"), "r"));
        assert_eq!(s3.access.ca_file, Some("/ca".into()));
        let s3 = S3Settings::from_env("b", Some("http://x".into()), None, &env(&[]));
        assert_eq!((s3.endpoint.as_deref(), s3.region.as_str()), (Some("http://x"), "us-east-1"));
        let gcs = GcsSettings::from_env("b", None, &env(&[("STORAGE_EMULATOR_HOST", "h:1")]));
        assert_eq!((gcs.endpoint.as_deref(), gcs.is_anonymous), (Some("http://h:1"), true));
        assert!(!GcsSettings::from_env("b", None, &env(&[])).is_anonymous);
    }
}
