//! Takes an input apart into numbers and strings. What is used up gives zeros.

pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, len: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        first
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    pub(super) fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    /// A number below `end`, or 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.number(3) % end.max(1) as u64) as usize
    }

    /// A number of any size: most are small, some lie at the ends of what 64 bits hold.
    pub(super) fn any_size(&mut self) -> u64 {
        match self.byte() % 8 {
            0 => self.number(8),
            1 => u64::MAX - self.number(2),
            2 => (1 << 63) - self.number(1),
            3 => self.number(5),
            _ => self.number(2),
        }
    }

    /// Text of at most 255 bytes.
    pub(super) fn text(&mut self) -> String {
        let len = usize::from(self.byte());
        String::from_utf8_lossy(self.take(len)).into_owned()
    }
}
