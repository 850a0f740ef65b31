use super::super::engine::Limits;
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
    let SwiftAuth::V3 { identity: Identity::Password { project, user_domain, project_domain, .. }, .. } =
        settings.auth
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
    assert!(matches!(settings.auth, SwiftAuth::V3 { identity: Identity::ApplicationCredential { .. }, .. }));
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
    let mut wrong = vec![
        "user:hunter2@h:1",
        "http://user:hunter2@h:99999",
        "http:/user:hunter2@h",
        "HTTP:user:hunter2@h",
    ];
    wrong.extend(["https://user:hunter2@h/v1", "http://hunter2@h", "http://:hunter2@h:1"]);
    for url in wrong {
        let words = [("AWS_ENDPOINT_URL", url), ("STORAGE_EMULATOR_HOST", url)];
        check(Settings::S3(Box::new(S3Settings::from_env("b", None, None, &env(&words)))));
        check(Settings::Gcs(Box::new(GcsSettings::from_env("b", None, &env(&words)))));
        let user = [("OS_USERNAME", "u"), ("OS_PASSWORD", "p"), ("OS_AUTH_URL", url)];
        check(Settings::Swift(Box::new(swift(&user).unwrap())));
        let user = [("OS_USERNAME", "u"), ("OS_PASSWORD", "p"), ("OS_AUTH_URL", "http://k")];
        check(Settings::Swift(Box::new(swift(&[&user[..], &[("OS_STORAGE_URL", url)]].concat()).unwrap())));
        check(Settings::Swift(Box::new(swift(&[("OS_AUTH_TOKEN", "t"), ("OS_STORAGE_URL", url)]).unwrap())));
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
        assert_eq!(error.kind(), ErrorKind::AccessDenied);
        assert!(error.to_string().contains(named), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("clouds.yaml");
    for (auth, named) in [
        ("password: s3cret", "auth.auth_url is not set"),
        ("auth_url: http://k\n      password: s3cret", "auth.username is not set"),
        ("auth_url: http://k\n      username: u", "auth.password is not set"),
        ("auth_url: http://k\n    auth_type: v3totp", "auth_type is"),
    ] {
        std::fs::write(&file, format!("clouds:\n  c:\n    auth:\n      {auth}\n")).unwrap();
        let words = [("OS_CLOUD", "c"), ("OS_CLIENT_CONFIG_FILE", file.to_str().unwrap())];
        let text = swift(&words).unwrap_err().to_string();
        assert!(text.contains(&format!("cloud \"c\" of clouds.yaml: {named}")), "{text}");
        assert!(!text.contains("OS_"), "{text}");
    }
    for wrong in [("OS_IDENTITY_API_VERSION", "2.0"), ("OS_AUTH_TYPE", "v3totp")] {
        let error = swift(&[("OS_AUTH_URL", "x"), wrong]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(error.to_string().contains(wrong.0), "{error}");
    }
    for (half, named) in
        [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY is"), ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID is")]
    {
        let error = S3Settings::check_pair(&env(&[(half, "x")])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AccessDenied);
        assert!(error.to_string().starts_with(named), "{error}");
    }
    assert!(S3Settings::check_pair(&env(&[])).is_ok());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.json");
    std::fs::write(&file, "{\"private_key\": s3cret").unwrap();
    let gcs =
        GcsSettings::from_env("b", None, &env(&[("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())]));
    let error = Settings::Gcs(Box::new(gcs)).open().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
    let text = error.to_string();
    assert!(text.contains("key.json\" is not JSON: line 1") && !text.contains("s3cret"), "{text}");
}

#[test]
fn tokens_of_another_server_than_googles_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key.json");
    let opened = |uri: &str| {
        std::fs::write(&file, format!("{{\"private_key\": \"s3cret\", \"token_uri\": \"{uri}\"}}")).unwrap();
        let words = [("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())];
        Settings::Gcs(Box::new(GcsSettings::from_env("b", None, &env(&words)))).open().map(drop)
    };
    for googles in ["https://oauth2.googleapis.com/token", "https://accounts.google.com/o/oauth2/token"] {
        opened(googles).unwrap();
    }
    let error = opened("http://u:hunter2@127.0.0.1:9/token").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
    let text = error.to_string();
    assert!(text.contains("names \"127.0.0.1\" in token_uri") && !text.contains("hunter2"), "{text}");
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
