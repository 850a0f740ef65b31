//! (draft)
use std::sync::Arc;

use super::Decoder;
use crate::error::Result;
use crate::store::ObjectSource;

pub(super) struct ZstdDecoder {
    source: Arc<dyn ObjectSource>,
}

impl ZstdDecoder {
    pub(super) fn new(source: Arc<dyn ObjectSource>) -> Result<Self> {
        Ok(Self { source })
    }
}

impl Decoder for ZstdDecoder {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        self.source.read_at(out, 0)
    }

    fn memory_bytes(&self) -> usize {
        0
    }
}
