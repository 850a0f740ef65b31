//! What is put into a store, as the body of a request.
//!
//! Invariant: what is in memory is not copied, and of a file only the piece is read that is on its way.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use opendal::Buffer;

use super::engine::Progress;
use crate::error::Result;
use crate::store::objects::Content;

/// How much of a body is read at once, in bytes.
const PIECE_BYTES: u64 = 256 << 10;

/// A part of the content, shared where it is in memory.
pub(super) fn bytes_of(content: &Content, offset: u64, len_bytes: u64) -> Result<Buffer> {
    let (from, len) = (offset as usize, len_bytes as usize);
    Ok(Buffer::from(match content {
        Content::Bytes(bytes) => Bytes::from_owner(Shared(bytes.clone())).slice(from..from + len),
        Content::File(..) => {
            let mut part = vec![0; len];
            content.read_exact_at(&mut part, offset)?;
            Bytes::from(part)
        }
    }))
}

struct Shared(Arc<Vec<u8>>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The content as a body, of which every part that is taken is noted.
pub(super) fn body_of_content(content: Content, progress: Progress) -> reqwest::Body {
    let pieces = stream::unfold(0, move |at| {
        progress.note();
        let len = PIECE_BYTES.min(content.len_bytes() - at);
        let piece = match len {
            0 => None,
            _ => {
                Some(bytes_of(&content, at, len).map(|piece| piece.to_bytes()).map_err(std::io::Error::other))
            }
        };
        std::future::ready(piece.map(|piece| (piece, at + len)))
    });
    reqwest::Body::wrap_stream(pieces)
}
