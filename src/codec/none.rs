//! Objects that are stored as they are.
//!
//! Reads go straight into the caller's buffer; the cursor is an offset and holds no memory.

use std::sync::Arc;

use super::Decoder;
use crate::error::{Error, Result};
use crate::store::ObjectSource;

/// A cursor over an object's bytes as they are stored.
pub(super) struct NoneDecoder {
    source: Arc<dyn ObjectSource>,
    offset: u64,
    failed: Option<Error>,
}

impl NoneDecoder {
    pub(super) fn new(source: Arc<dyn ObjectSource>) -> Self {
        Self { source, offset: 0, failed: None }
    }
}

impl Decoder for NoneDecoder {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < out.len() && self.failed.is_none() {
            match self.source.read_at(&mut out[filled..], self.offset) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    self.offset += read as u64;
                }
                Err(error) => self.failed = Some(error),
            }
        }
        match &self.failed {
            Some(error) if filled == 0 => Err(error.clone()),
            _ => Ok(filled),
        }
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}
