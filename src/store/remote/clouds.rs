//! A cloud of `clouds.yaml`, as the words that the environment has for the same things.
//!
//! The file is looked for where OpenStack's own tools do: `OS_CLIENT_CONFIG_FILE`, the working directory, `~/.config/openstack`, `/etc/openstack`. A
//! `secure.yaml` beside it adds to it.

use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use yaml_rust2::{Yaml, YamlLoader};

use super::settings::Env;
use crate::error::{Error, ErrorKind, Result};

/// Most bytes of such a file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The words of `cloud`. [`ErrorKind::Usage`] when no file has it.
pub(super) fn read(cloud: &str, env: Env<'_>) -> Result<HashMap<String, String>> {
    let places = places(env);
    let usage = |message: String| Error::new(ErrorKind::Usage, message);
    let Some(file) = places.iter().find(|file| file.is_file()) else {
        return Err(usage(format!("OS_CLOUD is {cloud:?}, and there is no clouds.yaml in the usual places")));
    };
    let mut words = words_of(&text_of(file)?, cloud)
        .map_err(|why| usage(format!("{file:?}: {why}")))?
        .ok_or_else(|| usage(format!("{file:?} has no cloud {cloud:?}")))?;
    let secure = file.with_file_name("secure.yaml");
    if secure.is_file() {
        let more = words_of(&text_of(&secure)?, cloud).map_err(|why| usage(format!("{secure:?}: {why}")))?;
        words.extend(more.unwrap_or_default());
    }
    Ok(words)
}

fn places(env: Env<'_>) -> Vec<PathBuf> {
    if let Some(file) = env("OS_CLIENT_CONFIG_FILE") {
        return vec![file.into()];
    }
    let home =
        env("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(Path::new(&env("HOME")?).join(".config")));
    let mut places = vec![PathBuf::from("clouds.yaml")];
    places.extend(home.map(|home| home.join("openstack/clouds.yaml")));
    places.push("/etc/openstack/clouds.yaml".into());
    places
}

fn text_of(file: &Path) -> Result<String> {
    let mut text = String::new();
    let read = fs::File::open(file).and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| Error::caused_by(ErrorKind::Usage, format!("cannot read {file:?}"), error))?;
    Ok(text)
}

/// The words of one cloud; `None` where the text does not have it. What is wrong with the text is told without quoting it.
fn words_of(text: &str, cloud: &str) -> Result<Option<HashMap<String, String>>, String> {
    let documents = YamlLoader::load_from_str(text)
        .map_err(|error| format!("line {} is not YAML", error.marker().line()))?;
    let Some(Yaml::Hash(settings)) = documents.first().map(|document| &document["clouds"][cloud]) else {
        return Ok(None);
    };
    let mut words = HashMap::new();
    for (key, value) in settings {
        let Some(key) = key.as_str() else { continue };
        match (key, value) {
            ("auth", Yaml::Hash(auth)) => {
                let of_auth =
                    auth.iter().filter_map(|(key, value)| Some((key.as_str()?.to_owned(), scalar(value)?)));
                words.extend(of_auth);
            }
            ("verify", Yaml::Boolean(is_verified)) => {
                words.insert("insecure".to_owned(), (!is_verified).to_string());
            }
            // The endpoint of one service, set by hand.
            ("object_store_endpoint_override" | "object_store_endpoint", value) => {
                words.extend(scalar(value).map(|value| ("storage_url".to_owned(), value)));
            }
            (key, value) => words.extend(scalar(value).map(|value| (key.to_owned(), value))),
        }
    }
    Ok(Some(words))
}

fn scalar(value: &Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(is_true) => Some(is_true.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "clouds:\n  one:\n    auth_type: v3applicationcredential\n    auth: {auth_url: 'http://k:5000', \
        application_credential_id: i}\n    region_name: R\n    verify: false\n    identity_api_version: 3\n  two: ~\n";

    #[test]
    fn a_cloud_becomes_words() {
        let words = words_of(TEXT, "one").unwrap().unwrap();
        let word = |name: &str| words.get(name).map(String::as_str);
        assert_eq!(word("auth_url"), Some("http://k:5000"));
        assert_eq!(word("application_credential_id"), Some("i"));
        assert_eq!(word("region_name"), Some("R"));
        assert_eq!(word("insecure"), Some("true"));
        assert_eq!(word("identity_api_version"), Some("3"));
        assert_eq!(words_of(TEXT, "two").unwrap(), None);
        assert_eq!(words_of("", "one").unwrap(), None);
        let error = words_of("clouds:\n  one: [s3cret\n", "one").unwrap_err();
        assert!(!error.contains("s3cret"), "{error}");
    }

    #[test]
    fn secrets_may_lie_in_a_file_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clouds.yaml");
        fs::write(&file, TEXT).unwrap();
        let secure = "clouds:\n  one:\n    auth: {application_credential_secret: s}\n";
        fs::write(folder.path().join("secure.yaml"), secure).unwrap();
        let path = file.to_str().unwrap().to_owned();
        let env = |name: &str| (name == "OS_CLIENT_CONFIG_FILE").then(|| path.clone());
        let words = read("one", &env).unwrap();
        assert_eq!(words["application_credential_secret"], "s");
        assert_eq!(words["region_name"], "R");
        let error = read("three", &env).unwrap_err();
        assert!(error.to_string().contains("three"), "{error}");
    }
}
