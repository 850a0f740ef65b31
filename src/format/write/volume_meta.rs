//! `volume_meta`: the row of the volume in Cinder's database, as JSON in a string.

use super::string;
use crate::types::VolumeId;

/// What `volume_meta` tells of the volume. What Cinder's database knows and we do not is null, or what an ordinary
/// volume has there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeMeta {
    /// The volume's id.
    pub id: String,
    /// The volume's size in GiB, rounded up.
    pub size_gib: u64,
    /// The volume's name; Cinder gives it to a new volume that the backup is restored to.
    pub display_name: Option<String>,
    /// The volume's description.
    pub display_description: Option<String>,
    /// When the volume was made; where that is not known, the backup.
    pub created_at: jiff::Timestamp,
    /// When the volume's row was changed.
    pub updated_at: Option<jiff::Timestamp>,
    /// Who owns it.
    pub user_id: Option<String>,
    /// Whose it is.
    pub project_id: Option<String>,
    /// Where it lies, as `host@backend#pool`.
    pub host: Option<String>,
    /// The availability zone.
    pub availability_zone: Option<String>,
    /// The id of its type.
    pub volume_type_id: Option<String>,
    /// The volume's own metadata: `--property` of `openstack volume set`. Cinder gives them to the restored volume.
    pub properties: Vec<(String, String)>,
}

impl VolumeMeta {
    /// A volume of which no more is known.
    pub fn new(
        id: &VolumeId,
        size_gib: u64,
        display_name: Option<String>,
        created_at: jiff::Timestamp,
    ) -> Self {
        Self {
            id: id.to_string(),
            size_gib,
            display_name,
            display_description: None,
            created_at,
            updated_at: None,
            user_id: None,
            project_id: None,
            host: None,
            availability_zone: None,
            volume_type_id: None,
            properties: Vec::new(),
        }
    }

    /// The JSON that `volume_meta` holds as a string: one line, the columns of the volume's row as Cinder 29 orders them.
    pub fn to_text(&self) -> String {
        enum Column<'a> {
            Null,
            Bool(bool),
            Text(&'a str),
            OrNull(&'a Option<String>),
            Number(u64),
        }
        use Column::{Bool, Null, Number, OrNull, Text};
        let time = |time: jiff::Timestamp| time.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string();
        let created_at = time(self.created_at);
        let updated_at = self.updated_at.map(time);
        let columns = [
            ("id", Text(&self.id)),
            ("_name_id", Null),
            ("use_quota", Bool(true)),
            ("ec2_id", Null),
            ("user_id", OrNull(&self.user_id)),
            ("project_id", OrNull(&self.project_id)),
            ("snapshot_id", Null),
            ("cluster_name", Null),
            ("host", OrNull(&self.host)),
            ("size", Number(self.size_gib)),
            ("availability_zone", OrNull(&self.availability_zone)),
            ("status", Text("available")),
            ("attach_status", Text("detached")),
            ("migration_status", Null),
            ("scheduled_at", Null),
            ("launched_at", Null),
            ("terminated_at", Null),
            ("display_name", OrNull(&self.display_name)),
            ("display_description", OrNull(&self.display_description)),
            ("provider_location", Null),
            ("provider_auth", Null),
            ("provider_geometry", Null),
            ("provider_id", Null),
            ("volume_type_id", OrNull(&self.volume_type_id)),
            ("source_volid", Null),
            ("encryption_key_id", Null),
            ("consistencygroup_id", Null),
            ("group_id", Null),
            ("bootable", Bool(false)),
            ("multiattach", Bool(false)),
            ("replication_status", Null),
            ("replication_extended_status", Null),
            ("replication_driver_data", Null),
            ("previous_status", Null),
            ("service_uuid", Null),
            ("shared_targets", Bool(true)),
            ("deleted_at", Null),
            ("deleted", Bool(false)),
            ("created_at", Text(&created_at)),
            ("updated_at", OrNull(&updated_at)),
        ];
        let mut out = b"{\"version\": 2, \"volume-base-metadata\": {".to_vec();
        for (i, (key, column)) in columns.iter().enumerate() {
            separate(&mut out, i, key);
            match column {
                Null | OrNull(None) => out.extend_from_slice(b"null"),
                Bool(true) => out.extend_from_slice(b"true"),
                Bool(false) => out.extend_from_slice(b"false"),
                Text(text) => string(&mut out, text),
                OrNull(Some(text)) => string(&mut out, text),
                Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
            }
        }
        out.push(b'}');
        if !self.properties.is_empty() {
            out.extend_from_slice(b", \"volume-metadata\": {");
            for (i, (key, text)) in self.properties.iter().enumerate() {
                separate(&mut out, i, key);
                string(&mut out, text);
            }
            out.push(b'}');
        }
        out.push(b'}');
        String::from_utf8(out).unwrap_or_default() // always ASCII
    }
}

fn separate(out: &mut Vec<u8>, index: usize, key: &str) {
    if index > 0 {
        out.extend_from_slice(b", ");
    }
    string(out, key);
    out.extend_from_slice(b": ");
}
