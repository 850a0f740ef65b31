//! Volumes that look like volumes, each stored as one giant object, and random numbers that are the same in each run.

#![allow(dead_code, reason = "each test binary uses its part of the kit")]

use crate::store_kit::{BackupSpec, ObjectSpec, Packing, digests_of};

/// Bytes of a hash block, as Cinder has it.
pub(crate) const BLOCK: usize = 32 << 10;

pub(crate) const MIB: usize = 1 << 20;

/// Numbers by xorshift.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Text-like bytes, noise and zeros in pieces of some 100 KiB. No two blocks are equal but those of zeros.
pub(crate) fn mixed(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(len + (256 << 10));
    while bytes.len() < len {
        let end = bytes.len() + (16 << 10) + random.below(200 << 10);
        match random.below(8) {
            0 => bytes.resize(end, 0),
            1 | 2 => {
                while bytes.len() < end {
                    bytes.extend(random.next().to_le_bytes());
                }
            }
            _ => {
                while bytes.len() < end {
                    let words = [" volume", " backup", " 0", "\n", " restore", " chain ", "=", " block"];
                    let number = random.next();
                    bytes.extend(words[number as usize % words.len()].as_bytes());
                    bytes.extend(format!("{:x}", number >> 44).as_bytes());
                }
            }
        }
    }
    bytes.truncate(len);
    bytes
}

/// An id that begins with `name`, as long as Cinder's.
pub(crate) fn id(name: &str) -> String {
    let name: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{name:0<8.8}-{name:0<4.4}-4aaa-8aaa-{name:0<12.12}")
}

/// A full backup of one object.
pub(crate) fn full(name: &str, plain: &[u8], packing: Packing) -> BackupSpec {
    let mut spec = BackupSpec::new(&id(name), &id(&format!("v{name}")));
    spec.digests = Some((BLOCK, digests_of(plain, BLOCK)));
    spec.objects.push(ObjectSpec { offset: 0, plain: plain.to_vec(), packing });
    spec
}
