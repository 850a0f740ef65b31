//! The region and the endpoint for S3, as AWS's own tools find them: the environment, then `~/.aws/config`.
//!
//! Credentials of the same folder are read by OpenDAL; it asks us for these.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use super::settings::Env;

/// Most bytes of the file that are looked at.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The region that is set, if one is. A file that cannot be read sets none.
pub(super) fn region(env: Env<'_>) -> Option<String> {
    if let Some(region) = env("AWS_REGION").or_else(|| env("AWS_DEFAULT_REGION")) {
        return Some(region);
    }
    of_profile("region", env)
}

/// The endpoint that is set, if one is.
pub(super) fn endpoint(env: Env<'_>) -> Option<String> {
    if let Some(url) = env("AWS_ENDPOINT_URL_S3").or_else(|| env("AWS_ENDPOINT_URL")) {
        return Some(url);
    }
    let is_ignored = env("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS");
    if is_ignored.is_some_and(|word| word.eq_ignore_ascii_case("true")) {
        return None;
    }
    of_profile("endpoint_url", env)
}

/// What the file says of the profile in use.
fn of_profile(wanted: &str, env: Env<'_>) -> Option<String> {
    let home = || Some(PathBuf::from(env("HOME")?).join(".aws/config"));
    let file = env("AWS_CONFIG_FILE").map(PathBuf::from).or_else(home)?;
    let profile = env("AWS_PROFILE").or_else(|| env("AWS_DEFAULT_PROFILE"));
    let mut text = String::new();
    let read = File::open(&file).and_then(|opened| opened.take(FILE_BYTES_MAX).read_to_string(&mut text));
    if let Err(error) = read {
        tracing::debug!("{file:?} is not read: {error}");
        return None;
    }
    value_of(wanted, &text, profile.as_deref().unwrap_or("default"))
}

/// A setting of `[default]` or `[profile NAME]`. Indented lines belong to the setting above them.
fn value_of(wanted: &str, text: &str, profile: &str) -> Option<String> {
    let mut is_meant = false;
    let mut found = None;
    for line in text.lines() {
        if let Some(section) = line.strip_prefix('[') {
            let name = section.split(']').next().unwrap_or_default().trim();
            let named = name.strip_prefix("profile").filter(|rest| rest.starts_with([' ', '\t']));
            let named = named.map(|name| name.trim().trim_matches(['"', '\'']));
            is_meant = named == Some(profile) || (name == "default" && profile == "default");
        } else if is_meant
            && !line.starts_with([' ', '\t'])
            && let Some((key, value)) = line.split_once('=')
            && key.trim_end() == wanted
        {
            found = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[default]\n# region = no\nregion = eu-west-1\ns3 =\n  region = nested\n[profile \"two\"]\noutput=json\n\
                        region=eu-north-1\n[profiles]\nregion = x\n[profile three]\nregion =\n";

    #[test]
    fn the_region_of_a_profile_is_found() {
        assert_eq!(value_of("region", TEXT, "default").as_deref(), Some("eu-west-1"));
        assert_eq!(value_of("region", TEXT, "two").as_deref(), Some("eu-north-1"));
        assert_eq!(value_of("region", TEXT, "three"), None);
        assert_eq!(value_of("region", TEXT, "four"), None);
    }

    #[test]
    fn the_environment_goes_before_the_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        std::fs::write(home.path().join(".aws/config"), TEXT).unwrap();
        let of = |more: &[(&str, &str)]| {
            region(&|name| match name {
                "HOME" => home.path().to_str().map(str::to_owned),
                name => more.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
            })
        };
        assert_eq!(of(&[]).as_deref(), Some("eu-west-1"));
        assert_eq!(of(&[("AWS_PROFILE", "two")]).as_deref(), Some("eu-north-1"));
        assert_eq!(of(&[("AWS_DEFAULT_REGION", "r")]).as_deref(), Some("r"));
        assert_eq!(of(&[("AWS_CONFIG_FILE", "/nonexistent")]), None);
    }

    #[test]
    fn a_profile_may_have_an_endpoint() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("config");
        std::fs::write(&file, "[profile p]\nendpoint_url = http://h:9000\n").unwrap();
        let of = |more: &[(&str, &str)]| {
            endpoint(&|name| match name {
                "AWS_CONFIG_FILE" => file.to_str().map(str::to_owned),
                "AWS_PROFILE" => Some("p".to_owned()),
                name => more.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()),
            })
        };
        assert_eq!(of(&[]).as_deref(), Some("http://h:9000"));
        assert_eq!(of(&[("AWS_ENDPOINT_URL", "http://e")]).as_deref(), Some("http://e"));
        assert_eq!(of(&[("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")]), None);
    }
}
