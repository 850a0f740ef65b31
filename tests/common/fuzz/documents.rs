//! Cinder's documents, and our key in them.

use std::io::Read;

use cinderfs::Result;
use cinderfs::codec::Codec;
use cinderfs::format::metadata::{self, BackupMetadata, ObjectRecord};
use cinderfs::format::points::{self, Place, PointsWriter, RESTART_POINTS_KEY};
use cinderfs::format::sha256file::{self, HEAD_BYTES, Header, TAIL_BYTES};
use cinderfs::format::write::{MetadataHead, MetadataWriter, NewObject, Sha256FileHead, Sha256FileLayout};
use cinderfs::types::{BlockHash, Md5};

use super::Input;

/// Most points that are looked at: a few bytes may tell any number of them.
const POINTS_MAX: usize = 4096;

/// A reader that gives a byte at a time.
struct Bytewise<R>(R);

impl<R: Read> Read for Bytewise<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let len = buf.len().min(1);
        self.0.read(&mut buf[..len])
    }
}

fn parse_metadata(reader: impl Read) -> Result<(BackupMetadata, Vec<ObjectRecord>)> {
    let mut objects = Vec::new();
    let parsed = metadata::parse(reader, &mut |object| {
        objects.push(object);
        Ok(())
    });
    Ok((parsed?, objects))
}

/// However it is read, it says the same; what it says is within bounds; and written again by our writer it still says so.
pub(super) fn metadata(data: &[u8]) {
    let parsed = parse_metadata(data);
    let bytewise = parse_metadata(Bytewise(data));
    let _ = metadata::volume_meta_text(data);
    assert_eq!(parsed.as_ref().ok(), bytewise.as_ref().ok());
    let Ok((metadata, objects)) = parsed else { return };
    for object in &objects {
        assert!(object.offset.checked_add(object.len_bytes).unwrap() <= metadata::OFFSET_MAX);
        assert!(object.codec == Codec::None || object.len_bytes <= metadata::PLAIN_BYTES_MAX);
        assert!(object.points.as_ref().is_none_or(|text| text.len() <= metadata::POINTS_TEXT_BYTES_MAX));
        object.points.as_deref().map(|text| points::parse(text, POINTS_MAX).is_ok());
    }

    let head = MetadataHead {
        description: metadata.description.clone(),
        backup_id: metadata.backup_id.clone(),
        name: metadata.name.clone(),
        created_at: "2024-03-02 14:01:07+00:00".into(),
        parent_id: metadata.parent_id.clone(),
        volume_id: metadata.volume_id.clone(),
        volume_meta: None,
    };
    let mut text = Vec::new();
    let mut writer = MetadataWriter::begin(&head, &mut text);
    let mut expected = Vec::new();
    for object in objects {
        let md5 = object.md5.unwrap_or(Md5([7; 16]));
        let points = object.points.clone().map(serde_json::Value::from);
        let extra: Vec<_> = points.map(|points| (RESTART_POINTS_KEY, points)).into_iter().collect();
        let new = NewObject {
            name: &object.name,
            compression: object.codec.name(),
            offset: object.offset,
            len_bytes: object.len_bytes,
            md5,
            extra: &extra,
        };
        if writer.object(&new, &mut text).is_ok() {
            expected.push(ObjectRecord { md5: Some(md5), ..object });
        }
    }
    writer.finish(&mut text);
    let (again, objects) = parse_metadata(&text[..]).unwrap();
    assert_eq!(objects, expected);
    let of = |metadata: BackupMetadata| {
        (metadata.backup_id, metadata.volume_id, metadata.parent_id, metadata.name, metadata.description)
    };
    assert_eq!(of(again), of(metadata));
}

fn stream(reader: impl Read) -> Result<(Header, Vec<BlockHash>)> {
    let mut digests = Vec::new();
    let header = sha256file::parse_stream(reader, &mut |digest| {
        digests.push(digest);
        Ok(())
    })?;
    Ok((header, digests))
}

/// Header and entries by stride; an entry that is no line of Cinder's is `None`.
fn stride(document: &[u8]) -> Option<Result<(Header, Vec<Option<BlockHash>>)>> {
    let head = &document[..document.len().min(HEAD_BYTES)];
    let tail = &document[document.len().saturating_sub(TAIL_BYTES)..];
    let (header, layout) = match sha256file::find_layout(head, tail, document.len() as u64)? {
        Ok(found) => found,
        Err(error) => return Some(Err(error)),
    };
    let entry = |index| {
        let bytes = layout.bytes_of(index..index + 1);
        layout.decode(&document[bytes.start as usize..bytes.end as usize])
    };
    Some(Ok((header, (0..layout.count()).map(entry).collect())))
}

/// Where all entries are there by stride, the stream has the same ones; and what our writer makes of them is read by stride.
pub(super) fn digests(data: &[u8]) {
    let streamed = stream(data);
    assert_eq!(streamed.as_ref().ok(), stream(Bytewise(data)).as_ref().ok());
    if let Some(Ok((header, entries))) = stride(data)
        && let Some(digests) = entries.into_iter().collect::<Option<Vec<_>>>()
    {
        assert_eq!(Some(&(header, digests)), streamed.as_ref().ok(), "{:?}", streamed.as_ref().err());
    }
    let Ok((header, digests)) = streamed else { return };
    let head = Sha256FileHead {
        description: None,
        backup_id: header.backup_id.clone().unwrap_or_default(),
        name: None,
        block_bytes: header.block_bytes,
        created_at: String::new(),
        volume_id: header.volume_id.clone().unwrap_or_default(),
    };
    let Ok(layout) = Sha256FileLayout::new(&head, digests.len() as u64) else { return };
    let mut text = layout.header().to_vec();
    text.extend(layout.encode_entries(0, &digests).unwrap());
    text.extend(layout.trailer());
    assert_eq!(text.len() as u64, layout.file_bytes());
    let (again, streamed) = stream(&text[..]).unwrap();
    assert_eq!((again.block_bytes, &streamed), (header.block_bytes, &digests));
    let head_fits = text.len() - digests.len() * 72 < TAIL_BYTES;
    if !digests.is_empty() && head_fits {
        let (_, entries) = stride(&text).unwrap().unwrap();
        assert!(entries.into_iter().eq(digests.into_iter().map(Some)));
    }
}

/// Points rise in both ways, and come back as they were written.
pub(super) fn points(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(parsed) = points::parse(&text, POINTS_MAX) {
        check_points(&parsed, &parsed);
    }
    let mut input = Input::new(data);
    let (mut given, mut kept, mut last) = (Vec::new(), Vec::new(), (0, 0));
    let mut at = Place { plain_offset: 0, stored_offset: 0 };
    while !input.is_empty() && given.len() < POINTS_MAX {
        at = match input.byte() % 4 {
            0 => Place { plain_offset: input.any_size(), stored_offset: input.any_size() },
            // The same step as the one before, as a writer of equal pieces makes it.
            1 => Place {
                plain_offset: at.plain_offset.wrapping_add(at.plain_offset.wrapping_sub(last.0)),
                stored_offset: at.stored_offset.wrapping_add(at.stored_offset.wrapping_sub(last.1)),
            },
            _ => Place {
                plain_offset: at.plain_offset.wrapping_add(1 << 17),
                stored_offset: at.stored_offset.wrapping_add(input.number(2)),
            },
        };
        given.push(at);
        if at.plain_offset > last.0 && at.stored_offset > last.1 {
            last = (at.plain_offset, at.stored_offset);
            kept.push(at);
        }
    }
    check_points(&given, &kept);
}

fn check_points(given: &[Place], kept: &[Place]) {
    let rises = |two: &[Place]| {
        two[0].plain_offset < two[1].plain_offset && two[0].stored_offset < two[1].stored_offset
    };
    assert!(kept.windows(2).all(rises), "{kept:?}");
    let mut writer = PointsWriter::default();
    given.iter().for_each(|&point| writer.push(point));
    let text = writer.finish();
    assert_eq!(text.is_none(), kept.is_empty());
    let Some(text) = text else { return };
    assert_eq!(points::parse(&text, POINTS_MAX).unwrap(), kept);
    let mut read = Vec::new();
    points::each(&text, &mut |point| {
        read.push(point);
        std::ops::ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(read, kept);
}
