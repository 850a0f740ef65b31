//! Access to a bucket of S3.

use super::super::aws_config;
use super::super::engine::Limits;
use super::super::http::Access;
use super::{Env, Secret, connections};
use crate::cinder_conf::backup::S3;
use crate::error::{Error, ErrorKind, Result};

/// The region that signatures name unless told.
const REGION: &str = "us-east-1";

/// Access to an S3 bucket, or to all of a server's.
#[derive(Clone, Debug)]
pub struct S3Settings {
    /// Its name; empty for all of them, which are folders then.
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
        let endpoint = endpoint.or_else(|| aws_config::endpoint(env));
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

    /// [`ErrorKind::AccessDenied`] when the environment has one half of a pair of keys.
    pub fn check_pair(env: Env<'_>) -> Result<()> {
        let (access, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
        let (missing, there) = match (env(access), env(secret)) {
            (Some(_), None) => (secret, access),
            (None, Some(_)) => (access, secret),
            _ => return Ok(()),
        };
        let message = format!("{missing} is not set, and {there} is; S3 needs both");
        Err(Error::new(ErrorKind::AccessDenied, message))
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
