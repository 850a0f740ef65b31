use std::path::PathBuf;

use super::*;

fn backup(text: &str) -> Result<BackupConf> {
    CinderConf::from_text(&format!("[DEFAULT]\n{text}"))?.backup()
}

#[test]
fn drivers_are_known_by_class_and_by_their_old_names() {
    for word in ["drivers.nfs.NFSBackupDriver", "drivers.nfs", "services.nfs"] {
        let conf = backup(&format!("backup_driver = cinder.backup.{word}\nbackup_share = h:/x\n")).unwrap();
        let Driver::Nfs(share) = conf.driver else { panic!("{word}: {:?}", conf.driver) };
        assert_eq!(share.source, "h:/x");
        assert_eq!(share.mount_base, PathBuf::from("/var/lib/cinder/backup_mount"));
    }
    for word in
        ["cinder.backup.drivers.ceph.CephBackupDriver", "cinder.backup.drivers.tsm", "my.own.Driver", ""]
    {
        let error = backup(&format!("backup_driver = {word}\n")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{word}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn a_mistyped_class_is_refused() {
    let of = |word: &str| backup(&format!("backup_driver = cinder.backup.drivers.{word}\n"));
    let error = of("swift.SwiftBackupDrivr").unwrap_err();
    assert!(error.to_string().ends_with("the class of that driver is SwiftBackupDriver"), "{error}");
    for right in ["swift.SwiftBackupDriver", "swift", "posix.PosixBackupDriver", "posix"] {
        assert!(of(right).is_ok(), "{right}");
    }
}

#[test]
fn files_have_cinders_defaults() {
    let conf = backup("backup_driver = cinder.backup.drivers.posix.PosixBackupDriver\n").unwrap();
    let Driver::Posix { path } = &conf.driver else { panic!("{:?}", conf.driver) };
    assert_eq!(path, &PathBuf::from("/var/lib/cinder/backup"));
    assert_eq!((conf.object_bytes, conf.block_bytes), (None, None));
    assert_eq!(conf.compression, None);
    assert_eq!(conf.container, None);
    assert!(conf.ignored.is_empty());
}

#[test]
fn swift_is_what_cinder_takes_when_nothing_is_said() {
    let conf = backup(
        "backup_swift_auth = single_user\nbackup_swift_auth_version = 3\nbackup_swift_auth_url = http://k:5000/v3\n\
         backup_swift_user = u\nbackup_swift_key = s3cret\nbackup_swift_project = p\nbackup_swift_object_size = 65536\n",
    )
    .unwrap();
    let Driver::Swift(swift) = &conf.driver else { panic!("{:?}", conf.driver) };
    assert_eq!((swift.auth_version, swift.project.as_deref()), (3, Some("p")));
    assert_eq!(swift.key.as_ref().unwrap().reveal(), "s3cret");
    assert!(!format!("{conf:?}").contains("s3cret"), "secrets are in no message");
    assert_eq!(conf.container.as_deref(), Some("volumebackups"));
    assert_eq!(conf.object_bytes, Some(65536));
}

#[test]
fn s3_needs_its_keys_and_takes_both_halves_of_sse_c() {
    let text = "backup_driver = cinder.backup.drivers.s3.S3BackupDriver\nbackup_s3_endpoint_url = http://h\n\
                backup_s3_store_access_key = a\n";
    let error = backup(text).unwrap_err();
    assert!(error.to_string().contains("backup_s3_store_secret_key"), "{error}");
    let text = format!("{text}backup_s3_store_secret_key = b\nbackup_s3_sse_customer_algorithm = AES256\n");
    let half = backup(&text).unwrap();
    let Driver::S3(s3) = &half.driver else { panic!("{:?}", half.driver) };
    assert!(s3.customer_key.is_none());
    let said = "backup_s3_sse_customer_algorithm is set and backup_s3_sse_customer_key is not";
    assert!(half.warnings.len() == 1 && half.warnings[0].starts_with(said), "{:?}", half.warnings);
    let both = backup(&format!("{text}backup_s3_sse_customer_key = k\n")).unwrap();
    let Driver::S3(s3) = &both.driver else { panic!("{:?}", both.driver) };
    assert_eq!(s3.customer_key.as_ref().unwrap().0, "AES256");
    assert!(both.warnings.is_empty(), "{:?}", both.warnings);
    let other = text.replace("customer_algorithm = AES256", "customer_key = s3cret");
    let half = backup(&other).unwrap().warnings.join("");
    assert!(half.starts_with("backup_s3_sse_customer_key is set") && !half.contains("s3cret"), "{half}");
}

#[test]
fn what_is_not_followed_is_named() {
    let conf = backup(
        "backup_driver = cinder.backup.drivers.posix.PosixBackupDriver\nbackup_swift_service_auth = true\n\
         backup_future_setting = 1\nbackup_workers = 4\nbackup_ceph_user = x\n\
         glusterfs_backup_flurb = 1\nglusterfs_backup_share = h:v\nglusterfs_shares_config = /x\n",
    )
    .unwrap();
    assert_eq!(
        conf.ignored,
        ["backup_future_setting", "backup_swift_service_auth", "glusterfs_backup_flurb"]
    );
}

#[test]
fn how_long_and_how_often_cinder_tries_is_not_followed_and_told_of_the_driver_in_use() {
    let all = "backup_s3_timeout = 0.5\nbackup_s3_retry_max_attempts = 4\nbackup_swift_retry_attempts = 3\n\
               backup_swift_retry_backoff = 2\nbackup_gcs_num_retries = 3\n";
    let s3 = "backup_driver = cinder.backup.drivers.s3.S3BackupDriver\nbackup_s3_endpoint_url = http://h\n\
              backup_s3_store_access_key = a\nbackup_s3_store_secret_key = b\n";
    let gcs = "backup_driver = cinder.backup.drivers.gcs.GoogleBackupDriver\nbackup_gcs_bucket = b\n";
    let ignored = |text: &str| backup(&format!("{text}{all}")).unwrap().ignored;
    assert_eq!(ignored(s3), ["backup_s3_retry_max_attempts", "backup_s3_timeout"]);
    assert_eq!(ignored(""), ["backup_swift_retry_attempts", "backup_swift_retry_backoff"]);
    assert_eq!(ignored(gcs), ["backup_gcs_num_retries"]);
    assert!(ignored("backup_driver = cinder.backup.drivers.posix\n").is_empty());
    assert!(is_about_tries("backup_s3_timeout") && !is_about_tries("backup_s3_max_pool_connections"));
    for wrong in ["backup_s3_timeout = soon", "backup_s3_timeout = -1", "backup_s3_retry_max_attempts = x"] {
        let error = backup(&format!("{s3}{wrong}\n")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{wrong}");
    }
}

#[test]
fn sizes_and_words_that_cinder_refuses_are_refused() {
    let posix = "backup_driver = cinder.backup.drivers.posix\n";
    for wrong in [
        "backup_file_size = 100000",
        "backup_file_size = 0",
        "backup_sha_block_size_bytes = x",
        "backup_compression_algorithm = lzma",
    ] {
        let error = backup(&format!("{posix}{wrong}\n")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage, "{wrong}");
    }
    let conf = backup(&format!("{posix}backup_compression_algorithm = BZIP2\n")).unwrap();
    assert_eq!(conf.compression, Some(Codec::Bz2));
}
