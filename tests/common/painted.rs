//! The reference model: what an image must be, from byte arrays and nothing else.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::ops::Range;

/// Where in the volume, and the bytes there.
pub(crate) type Layer = Vec<(usize, Vec<u8>)>;

/// Paints layers over each other, the full backup first: the bytes, and which of them any layer has painted.
pub(crate) fn paint<'a>(layers: impl IntoIterator<Item = &'a Layer>) -> (Vec<u8>, Vec<bool>) {
    let (mut image, mut painted) = (Vec::new(), Vec::new());
    for (at, bytes) in layers.into_iter().flatten() {
        let end = at + bytes.len();
        if image.len() < end && !bytes.is_empty() {
            image.resize(end, 0);
            painted.resize(end, false);
        }
        if !bytes.is_empty() {
            image[*at..end].copy_from_slice(bytes);
            painted[*at..end].fill(true);
        }
    }
    (image, painted)
}

/// What the image of one backup must be.
#[derive(Clone, Debug)]
pub(crate) struct Painted {
    pub(crate) id: String,
    /// This backup first, the full one last.
    pub(crate) chain: Vec<String>,
    pub(crate) bytes: Vec<u8>,
    /// Bytes that cannot be served, because nothing proves them.
    pub(crate) unproven: Vec<bool>,
    /// The block of the digests; `None` without digests.
    pub(crate) block_bytes: Option<usize>,
}

impl Painted {
    /// The bytes of a range, cut at the end of the image; `None` when some of them cannot be served.
    pub(crate) fn read(&self, range: Range<usize>) -> Option<&[u8]> {
        let end = range.end.min(self.bytes.len());
        let range = range.start.min(end)..end;
        (!self.unproven[range.clone()].contains(&true)).then(|| &self.bytes[range])
    }

    pub(crate) fn is_whole(&self) -> bool {
        !self.unproven.contains(&true)
    }

    /// Whether the byte lies in a hole: a block of zeros, where there are digests that say so.
    pub(crate) fn is_hole(&self, at: usize) -> bool {
        let Some(block_bytes) = self.block_bytes else { return false };
        let start = at / block_bytes * block_bytes;
        let end = (start + block_bytes).min(self.bytes.len());
        self.bytes[start..end].iter().all(|&byte| byte == 0)
    }

    /// Ranges of data and holes in turn, each with whether it is a hole; together the whole image.
    pub(crate) fn runs(&self) -> Vec<(Range<usize>, bool)> {
        let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
        let step = self.block_bytes.unwrap_or(self.bytes.len()).max(1);
        for start in (0..self.bytes.len()).step_by(step) {
            let (end, hole) = ((start + step).min(self.bytes.len()), self.is_hole(start));
            match runs.last_mut() {
                Some((range, was)) if *was == hole => range.end = end,
                _ => runs.push((start..end, hole)),
            }
        }
        runs
    }

    pub(crate) fn data_bytes(&self) -> usize {
        self.runs().iter().filter(|(_, hole)| !hole).map(|(range, _)| range.len()).sum()
    }
}
