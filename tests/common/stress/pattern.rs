//! The bytes of volumes, computed.
//!
//! A volume is a seed and a length. Its first backup is generation 0; in each generation after that one block in [`CHANGED_SHARE`] changes. What a
//! block holds follows from the seed, its number and the generation that changed it last.

/// Bytes of a hash block, as Cinder has it.
pub(crate) const BLOCK: u64 = 32 << 10;

/// What is computed at once, in bytes.
const PAGE: u64 = 4 << 10;

/// One block in so many changes from one generation to the next.
const CHANGED_SHARE: u64 = 6;

/// One volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Volume {
    pub(crate) seed: u64,
    pub(crate) len: u64,
}

/// The same numbers for the same seed, one after the other (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 below 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// Whether one of `share` throws hits.
    pub(crate) fn one_in(&mut self, share: u64) -> bool {
        self.below(share) == 0
    }
}

fn hash(numbers: [u64; 3]) -> u64 {
    numbers.iter().fold(0, |hash, number| Random(hash ^ number).next())
}

impl Volume {
    /// The generation that changed a block last, as of `generation`.
    fn stamp(self, block: u64, generation: u64) -> u64 {
        let is_changed = |at: &u64| hash([self.seed, block, *at]).is_multiple_of(CHANGED_SHARE);
        (1..=generation).rev().find(is_changed).unwrap_or(0)
    }

    /// Whether a block holds nothing but zeros.
    pub(crate) fn is_zero(self, block: u64, generation: u64) -> bool {
        match self.stamp(block, generation) {
            // Volumes have long runs of zeros, and blocks that were cleared.
            0 => hash([self.seed, !0, block / 4]).is_multiple_of(5),
            stamp => hash([self.seed, !stamp, block]).is_multiple_of(7),
        }
    }

    /// The bytes from `offset` on, which all lie in the volume.
    pub(crate) fn fill(self, generation: u64, offset: u64, bytes: &mut [u8]) {
        let mut done = 0;
        let mut page = [0; PAGE as usize];
        while done < bytes.len() {
            let at = offset + done as u64;
            let (number, skip) = (at / PAGE, (at % PAGE) as usize);
            let n = (page.len() - skip).min(bytes.len() - done);
            self.page(generation, number, &mut page);
            bytes[done..done + n].copy_from_slice(&page[skip..skip + n]);
            done += n;
        }
    }

    fn page(self, generation: u64, number: u64, page: &mut [u8; PAGE as usize]) {
        let block = number * PAGE / BLOCK;
        if self.is_zero(block, generation) {
            page.fill(0);
            return;
        }
        let mut random = Random(hash([self.seed, number, self.stamp(block, generation)]));
        // Some of it does not compress.
        let is_noise = hash([self.seed, !1, block]).is_multiple_of(3);
        for word in page.chunks_exact_mut(8) {
            let number = random.next();
            let number = if is_noise { number } else { u64::from_le_bytes(*b"aaaaaaaa") + (number & 0x0f0f) };
            word.copy_from_slice(&number.to_le_bytes());
        }
    }
}
