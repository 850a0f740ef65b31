//! A cloud of `clouds.yaml`, as the words that the environment has for the same things.
//!
//! The file is looked for where OpenStack's own tools do: `OS_CLIENT_CONFIG_FILE`, the working directory, `~/.config/openstack`, `/etc/openstack`. A
//! `secure.yaml` beside it adds to it.
//!
//! Invariant: a file may be a stranger's, since the working directory is looked in; neither its aliases nor its depth cost more than
//! [`EXPANDED_BYTES_MAX`] and [`DEPTH_MAX`] allow.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use yaml_rust2::parser::Parser;
use yaml_rust2::{Event, Yaml, YamlLoader};

use super::settings::Env;
use crate::error::{Error, ErrorKind, Result};

/// Most bytes of such a file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Most bytes that it may have with an alias's text in place of each alias; ten lines of aliases of aliases can be terabytes. A file of some hundred clouds has
/// some hundred kilobytes.
const EXPANDED_BYTES_MAX: u64 = 8 << 20;

/// What a scalar or a collection counts beside its text.
const NODE_BYTES: u64 = 8;

/// Most collections in one another. The loader recurses; a cloud's settings lie four deep.
const DEPTH_MAX: usize = 64;

/// The key of what is merged into a mapping.
const MERGE: &str = "<<";

/// The words of `cloud`. [`ErrorKind::Usage`] when no file has it.
pub(super) fn read(cloud: &str, env: Env<'_>) -> Result<HashMap<String, String>> {
    let places = places(env);
    let usage = |message: String| Error::new(ErrorKind::Usage, message);
    let Some(file) = places.iter().find(|file| file.is_file()) else {
        let none = match env("OS_CLIENT_CONFIG_FILE") {
            Some(file) => format!("no file {file:?}, which OS_CLIENT_CONFIG_FILE names"),
            None => "no clouds.yaml in the usual places".to_owned(),
        };
        return Err(usage(format!("OS_CLOUD is {cloud:?}, and there is {none}")));
    };
    let mut words = words_of(&text_of(file)?, cloud)
        .map_err(|why| usage(format!("{file:?}: {why}")))?
        .ok_or_else(|| usage(format!("{file:?} has no cloud {cloud:?}")))?;
    let secure = file.with_file_name("secure.yaml");
    if secure.is_file() {
        let more = words_of(&text_of(&secure)?, cloud).map_err(|why| usage(format!("{secure:?}: {why}")))?;
        words.extend(more.unwrap_or_default());
    }
    if let Some(profile) = words.get("profile") {
        let what = format!("{file:?}: cloud {cloud:?} has the profile {profile:?}, which is not followed");
        if !words.contains_key("auth_url") {
            return Err(usage(format!("{what}; write the auth_url in the cloud's own settings")));
        }
        tracing::warn!("{what}");
    }
    // As OpenStack's tools do.
    let home = env("HOME");
    if let Some(cacert) = words.get_mut("cacert")
        && let (Some(rest), Some(home)) = (cacert.strip_prefix("~/"), home)
    {
        *cacert = format!("{home}/{rest}");
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
    check_expansion(text)?;
    let documents = YamlLoader::load_from_str(text).map_err(|error| not_yaml(&error))?;
    let Some(document) = documents.first() else { return Ok(None) };
    let Some(clouds) = member(document, "clouds")? else { return Ok(None) };
    let Some(settings @ Yaml::Hash(_)) = member(clouds, cloud)? else { return Ok(None) };
    let mut words = HashMap::new();
    for (key, value) in members(settings)? {
        match (key, value) {
            ("auth", auth @ Yaml::Hash(_)) => {
                let of_auth = members(auth)?.into_iter();
                words.extend(of_auth.filter_map(|(key, value)| Some((key.to_owned(), scalar(value)?))));
            }
            ("verify", Yaml::Boolean(is_verified)) => {
                words.insert("insecure".to_owned(), (!is_verified).to_string());
            }
            // A vendor's name, or a mapping of settings.
            ("profile", value) => {
                let name = scalar(value).unwrap_or_else(|| "of its own".to_owned());
                words.insert("profile".to_owned(), name);
            }
            ("interface" | "object_store_interface", Yaml::Array(_)) => {
                return Err(format!("{key} is a list, expected one word"));
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

/// A mapping's own members, and behind them those of the mappings that it merges in (`<<`) and does not have itself. As in YAML 1.1, which
/// OpenStack's tools read: the first of several counts, and what lies deeper is taken whole.
fn members(mapping: &Yaml) -> Result<Vec<(&str, &Yaml)>, String> {
    let (mut members, mut known) = (Vec::new(), HashSet::new());
    collect(mapping, &mut |key, value| {
        if known.insert(key) {
            members.push((key, value));
        }
    })?;
    Ok(members)
}

fn member<'y>(mapping: &'y Yaml, wanted: &str) -> Result<Option<&'y Yaml>, String> {
    Ok(members(mapping)?.into_iter().find(|(key, _)| *key == wanted).map(|(_, value)| value))
}

/// Recurses no deeper than the text is nested, see [`DEPTH_MAX`].
fn collect<'y>(mapping: &'y Yaml, take: &mut dyn FnMut(&'y str, &'y Yaml)) -> Result<(), String> {
    let Yaml::Hash(own) = mapping else { return Ok(()) };
    let (mut merged, mut others) = (None, Vec::new());
    for (key, value) in own {
        match key.as_str() {
            Some(MERGE) => merged = Some(value),
            Some(key) => take(key, value),
            None => {}
        }
    }
    match merged {
        None => {}
        Some(mapping @ Yaml::Hash(_)) => others.push(mapping),
        Some(Yaml::Array(list)) => others.extend(list),
        Some(_) => return Err(not_merged()),
    }
    for other in others {
        if !matches!(other, Yaml::Hash(_)) {
            return Err(not_merged());
        }
        collect(other, take)?;
    }
    Ok(())
}

fn not_merged() -> String {
    format!("`{MERGE}` takes a mapping, or a list of them")
}

fn not_yaml(error: &yaml_rust2::ScanError) -> String {
    format!("line {} is not YAML", error.marker().line())
}

/// Whether the text may be loaded: the loader copies what an anchor stands at, once for the anchor and once for each alias of it.
fn check_expansion(text: &str) -> Result<(), String> {
    let mut parser = Parser::new_from_str(text);
    let mut bytes: u64 = 0;
    // What stands at each anchor, and the collections that are open: bytes before, and how deep it is nested in itself.
    let mut copies: HashMap<usize, (u64, usize)> = HashMap::new();
    let mut open: Vec<(usize, u64, usize)> = Vec::new();
    loop {
        let (event, at) = parser.next_token().map_err(|error| not_yaml(&error))?;
        match event {
            Event::StreamEnd => return Ok(()),
            Event::Scalar(text, _, anchor, _) => {
                let own = NODE_BYTES + text.len() as u64;
                bytes = bytes.saturating_add(own);
                if anchor > 0 {
                    copies.insert(anchor, (own, 0));
                    bytes = bytes.saturating_add(own);
                }
            }
            Event::SequenceStart(anchor, _) | Event::MappingStart(anchor, _) => {
                open.push((anchor, bytes, 0));
                bytes = bytes.saturating_add(NODE_BYTES);
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((anchor, before, depth)) = open.pop() else { continue };
                if let Some((_, _, around)) = open.last_mut() {
                    *around = (depth + 1).max(*around);
                }
                if anchor > 0 {
                    let own = bytes - before;
                    copies.insert(anchor, (own, depth + 1));
                    bytes = bytes.saturating_add(own);
                }
            }
            Event::Alias(anchor) => {
                let (own, depth) = copies.get(&anchor).copied().unwrap_or((NODE_BYTES, 0));
                bytes = bytes.saturating_add(own);
                if let Some((_, _, around)) = open.last_mut() {
                    *around = depth.max(*around);
                }
            }
            Event::Nothing | Event::StreamStart | Event::DocumentStart | Event::DocumentEnd => {}
        }
        if open.len() + open.last().map_or(0, |(_, _, depth)| *depth) > DEPTH_MAX {
            return Err(format!("line {} is nested more than {DEPTH_MAX} deep", at.line()));
        }
        if bytes > EXPANDED_BYTES_MAX {
            return Err(format!("line {}: more than {EXPANDED_BYTES_MAX} bytes with aliases", at.line()));
        }
    }
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
    fn what_is_not_followed_is_named_and_homes_are_filled_in() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clouds.yaml");
        let text = "clouds:\n  a: {profile: vendor, auth: {username: u}}\n  b: {profile: vendor, auth: {auth_url: x}, cacert: ~/ca.pem}\n  \
                    c: {interface: [internal, public], auth: {auth_url: x}}\n";
        fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap().to_owned();
        let env = |name: &str| match name {
            "OS_CLIENT_CONFIG_FILE" => Some(path.clone()),
            "HOME" => Some("/home/u".to_owned()),
            _ => None,
        };
        let error = read("a", &env).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains("profile \"vendor\""), "{error}");
        assert_eq!(read("b", &env).unwrap()["cacert"], "/home/u/ca.pem");
        assert!(read("c", &env).unwrap_err().to_string().contains("interface is a list"));
    }

    #[test]
    fn aliases_are_followed_and_do_not_grow_without_end() {
        let text = "x: &auth {auth_url: 'http://k', username: &u n}\nclouds: {one: {auth: *auth, region_name: *u}}\n";
        let words = words_of(text, "one").unwrap().unwrap();
        assert_eq!((&*words["auth_url"], &*words["region_name"]), ("http://k", "n"));
        let refused = |text: &str| words_of(text, "one").unwrap_err();
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..40 {
            let last = format!("*a{}", i - 1);
            bomb.push_str(&format!("a{i}: &a{i} [{}]\n", [&*last; 10].join(", ")));
        }
        bomb.push_str("clouds: {one: {region_name: x}}\n");
        assert!(refused(&bomb).contains("aliases"), "{}", refused(&bomb));
        let long = format!("a: &a {}\nclouds: [{}]\n", "x".repeat(100_000), "*a, ".repeat(1000));
        assert!(refused(&long).contains("aliases"), "{}", refused(&long));
        // Each of these is copied into the one around it.
        let anchors: String = (0..60).map(|i| format!("[&b{i} ")).collect();
        let anchors = format!("a: {anchors}{}{}\n", "x".repeat(500_000), "]".repeat(60));
        assert!(refused(&anchors).contains("aliases"), "{}", refused(&anchors));
        let aliases = (1..9).map(|i| format!("c{i}: &c{i} {}*c{} {}\n", "[".repeat(9), i - 1, "]".repeat(9)));
        let aliases = format!("c0: &c0 []\n{}", aliases.collect::<String>());
        for deep in [format!("a: {}{}", "[".repeat(70), "]".repeat(70)), aliases] {
            assert!(refused(&deep).contains("deep"), "{}", refused(&deep));
        }
        // Too deep for the parser already.
        for deep in ["[".repeat(200_000), "- ".repeat(200_000), "a: &a [".repeat(100_000)] {
            refused(&deep);
        }
    }

    #[test]
    fn mappings_are_merged_into_others() {
        let text = "base: &base\n  region_name: R\n  interface: internal\n  auth: &auth {auth_url: 'http://k', username: u}\n\
            more: &more {region_name: S, cacert: /ca, <<: *base}\nothers: &others {two: {region_name: T}}\nclouds:\n  <<: *others\n  \
            one:\n    <<: *base\n    interface: public\n    auth:\n      password: p\n      username: v\n      <<: *auth\n  \
            three:\n    <<: [*more, *base]\n  four: {<<: [*base, *more], auth: {username: w}}\n  \
            five: {<<: 7, region_name: R}\n  six: {<<: [x]}\n";
        let word = |cloud: &str, word: &str| words_of(text, cloud).unwrap().unwrap().remove(word);
        let is =
            |cloud, name, value: Option<&str>| assert_eq!(word(cloud, name).as_deref(), value, "{cloud}");
        is("one", "region_name", Some("R"));
        is("one", "interface", Some("public"));
        is("one", "username", Some("v"));
        is("one", "auth_url", Some("http://k"));
        is("two", "region_name", Some("T"));
        is("three", "region_name", Some("S"));
        is("three", "auth_url", Some("http://k"));
        is("four", "region_name", Some("R"));
        is("four", "cacert", Some("/ca"));
        is("four", "username", Some("w"));
        // Its own `auth` stands in the place of the other.
        is("four", "auth_url", None);
        for wrong in ["five", "six"] {
            assert!(words_of(text, wrong).unwrap_err().contains("takes a mapping"), "{wrong}");
        }
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
