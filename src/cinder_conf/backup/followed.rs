//! Which options are followed, and which are to be told because they are not.

use super::drivers::Driver;
use crate::cinder_conf::CinderConf;
use crate::cinder_conf::DEFAULT;

/// Options that we follow, or that say nothing about where backups are, how they are read, or what is in them: service intervals,
/// notifications, which storage class a new bucket gets.
const FOLLOWED: &str = "backup_driver backup_posix_path backup_container backup_file_size backup_sha_block_size_bytes \
    backup_share backup_mount_options backup_mount_point_base backup_mount_attempts glusterfs_backup_share \
    glusterfs_backup_mount_point backup_compression_algorithm \
    backup_swift_url backup_swift_auth_url backup_swift_auth backup_swift_auth_version backup_swift_tenant \
    backup_swift_user_domain backup_swift_project_domain backup_swift_project backup_swift_user backup_swift_key \
    backup_swift_container backup_swift_object_size backup_swift_block_size backup_swift_ca_cert_file backup_swift_auth_insecure backup_swift_region_name \
    backup_s3_endpoint_url backup_s3_store_access_key backup_s3_store_secret_key backup_s3_store_bucket \
    backup_s3_object_size backup_s3_block_size backup_s3_max_pool_connections \
    backup_s3_verify_ssl backup_s3_ca_cert_file backup_s3_sse_customer_key \
    backup_s3_sse_customer_algorithm \
    backup_gcs_bucket backup_gcs_object_size backup_gcs_block_size backup_gcs_credential_file \
    backup_gcs_proxy_url \
    backup_api_class backup_manager backup_metadata_version backup_name_template backup_object_number_per_notification \
    backup_service_inithost_offload backup_timer_interval backup_use_same_host backup_use_temp_snapshot \
    backup_workers backup_max_operations backup_enable_progress_timer backup_swift_enable_progress_timer \
    backup_s3_enable_progress_timer backup_gcs_enable_progress_timer backup_driver_init_check_interval \
    backup_driver_stats_polling_interval backup_driver_status_check_interval backup_native_threads_pool_size \
    backup_create_containers backup_swift_create_storage_policy backup_gcs_bucket_location backup_gcs_storage_class \
    backup_gcs_project_id backup_gcs_user_agent backup_gcs_reader_chunk_size backup_gcs_writer_chunk_size \
    backup_s3_md5_validation backup_gcs_retry_error_codes backup_s3_retry_mode";

/// Options of the driver that once kept volumes on GlusterFS, which old files still have.
const OF_VOLUMES: [&str; 5] = [
    "glusterfs_shares_config",
    "glusterfs_mount_point_base",
    "glusterfs_sparsed_volumes",
    "glusterfs_qcow2_volumes",
    "glusterfs_disk_util",
];

/// How long and how often each driver of Cinder's tries. We wait for a store as long as the caller says, in seconds and not in tries: a
/// create that runs for hours should outlive a server that is restarted, whatever a driver would make of it.
const TRIES: [(&str, &[&str]); 3] = [
    ("swift", &["backup_swift_retry_attempts", "backup_swift_retry_backoff"]),
    ("s3", &["backup_s3_timeout", "backup_s3_retry_max_attempts"]),
    ("gcs", &["backup_gcs_num_retries"]),
];

/// Whether the option says how long or how often a store is tried.
pub fn is_about_tries(option: &str) -> bool {
    TRIES.iter().any(|(_, options)| options.contains(&option))
}

/// Options for backups that are set, that are not [`FOLLOWED`], and that do not belong to another driver's matters.
pub(super) fn ignored(conf: &CinderConf, driver: &Driver) -> Vec<String> {
    let is_anothers_tries =
        |name: &str| TRIES.iter().any(|(of, options)| *of != driver.name() && options.contains(&name));
    let mut names: Vec<_> = conf
        .names(DEFAULT)
        .filter(|name| {
            ["backup_", "glusterfs_"].iter().any(|start| name.starts_with(start))
                && !OF_VOLUMES.contains(name)
                && !name.starts_with("backup_ceph_")
                && !name.starts_with("backup_tsm_")
        })
        .filter(|name| !FOLLOWED.split_whitespace().any(|followed| followed == *name))
        .filter(|name| !is_anothers_tries(name))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}
