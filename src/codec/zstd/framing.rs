//! Where in a run of frames the decoder is: RFC 8878 section 3.1.
//!
//! Problem: libzstd does not tell where blocks begin. Idea: the stored bytes that it has taken pass here too, and their
//! headers are read; three bytes per block cost nothing. What a header means for decoding is libzstd's business: it has
//! already accepted what comes here.
//!
//! Invariant: what is not understood ends the following for good ([`Place::Lost`]), and changes nothing else.

use crate::codec::Frames;

/// Most plain and most stored bytes of a block.
pub(super) const BLOCK_BYTES_MAX: usize = 128 * 1024;

/// What a frame begins with, and the first of sixteen numbers that a skippable frame begins with.
const MAGIC: u32 = 0xFD2F_B528;
const MAGIC_SKIPPABLE: u32 = 0x184D_2A50;

/// The longest frame header, its magic number included.
pub(super) const HEADER_BYTES_MAX: usize = 18;

/// What the frame's header says.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Frame {
    /// How far back its matches may reach, in bytes.
    pub(super) window_bytes: u64,
    /// It tells the length of its plain bytes.
    pub(super) has_size: bool,
    /// Four bytes follow its last block.
    pub(super) has_checksum: bool,
    /// Stored offset of its first byte.
    pub(super) stored_start: u64,
    /// Plain offset of its first byte, or less.
    pub(super) plain_start: u64,
}

/// How a block is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BlockKind {
    /// As it is, or as one byte repeated.
    Simple,
    Compressed,
}

/// What passes.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// A frame's header is complete.
    FrameStart,
    /// Bytes of a compressed block's content, and whether they are its first and its last.
    Body { bytes: &'a [u8], is_first: bool, is_last: bool },
    /// A frame's last block is complete.
    FrameEnd,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In a frame's header.
    Header,
    Skippable,
    /// In a block's header.
    Block,
    Body,
    Checksum,
    Lost,
}

/// Follows the stored bytes of frames.
#[derive(Clone, Debug)]
pub(super) struct Framing {
    place: Place,
    /// A header that is not complete.
    header: [u8; HEADER_BYTES_MAX],
    have: usize,
    /// Bytes to come of a place that has content.
    remaining: u64,
    kind: BlockKind,
    is_first_byte: bool,
    is_last_block: bool,
    is_first_block: bool,
    is_untouched: bool,
    /// Stored offset of the next byte.
    stored: u64,
    frame: Frame,
    tally: Tally,
}

/// What all frames so far were like.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    count: u64,
    sized: u64,
    /// The stored offset behind which the stream must reach so that each frame before the last is smaller than what follows.
    reach: u64,
    /// The same for the last frame, if it turns out not to be the last.
    reach_of_last: u64,
    last_end: u64,
}

/// One block header: whether it is the last, how it is stored, and its content's stored bytes. `None` for a bad one.
pub(super) fn block_header(bytes: [u8; 3]) -> Option<(bool, BlockKind, u32, u64)> {
    let header = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0]);
    let size = header >> 3;
    let (kind, stored) = match (header >> 1) & 3 {
        0 => (BlockKind::Simple, u64::from(size)),
        1 => (BlockKind::Simple, 1),
        2 => (BlockKind::Compressed, u64::from(size)),
        _ => return None,
    };
    Some((header & 1 == 1, kind, size, stored))
}

/// The frame that `bytes`, an object's first ones, begin; `None` when they do not.
pub(super) fn frame_of(bytes: &[u8]) -> Option<Frame> {
    let mut framing = Framing::at_frame(0);
    let mut frame = None;
    for byte in bytes {
        framing.push(std::slice::from_ref(byte), 0, |_| ());
        frame = frame.or(framing.border().map(|(frame, _)| *frame));
    }
    frame
}

impl Framing {
    /// At stored offset `stored`, where a frame begins.
    pub(super) fn at_frame(stored: u64) -> Self {
        Self {
            place: Place::Header,
            header: [0; HEADER_BYTES_MAX],
            have: 0,
            remaining: 0,
            kind: BlockKind::Simple,
            is_first_byte: false,
            is_last_block: false,
            is_first_block: false,
            is_untouched: true,
            stored,
            frame: Frame::default(),
            tally: Tally::default(),
        }
    }

    /// What the frames were like, if the stream ends here.
    pub(super) fn frames(&self) -> Frames {
        let Tally { count, sized, reach, last_end, .. } = self.tally;
        Frames { count, sized, each_fits_before_the_rest: count == 1 || reach < last_end }
    }

    /// A frame ends here.
    fn count(&mut self, is_data: bool) {
        let tally = &mut self.tally;
        tally.reach = tally.reach.max(tally.reach_of_last);
        tally.reach_of_last = 0;
        if is_data {
            tally.count += 1;
            tally.sized += u64::from(self.frame.has_size);
            tally.reach_of_last = self.stored + (self.stored - self.frame.stored_start.min(self.stored));
        }
        tally.last_end = self.stored;
    }

    /// At stored offset `stored`, where a block of `frame` begins that is not its first.
    pub(super) fn at_block(stored: u64, frame: Frame) -> Self {
        Self { place: Place::Block, frame, ..Self::at_frame(stored) }
    }

    /// Stored offset of the next byte.
    pub(super) fn stored(&self) -> u64 {
        self.stored
    }

    /// The frame whose header came last.
    pub(super) fn frame(&self) -> &Frame {
        &self.frame
    }

    /// Whether nothing was pushed yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.is_untouched
    }

    /// The frame around a block border, if the next byte is a block's first; and whether it is the frame's first block.
    pub(super) fn border(&self) -> Option<(&Frame, bool)> {
        (self.place == Place::Block && self.have == 0).then_some((&self.frame, self.is_first_block))
    }

    /// The frame whose header `bytes`, the next stored ones, complete.
    pub(super) fn frame_begun_by(&self, bytes: &[u8]) -> Option<Frame> {
        if self.place != Place::Header {
            return None;
        }
        let mut after = self.clone();
        let mut begun = None;
        for byte in bytes {
            if after.place != Place::Header {
                break;
            }
            after.push(std::slice::from_ref(byte), 0, |_| ());
            begun = begun.or(after.border().map(|(frame, _)| *frame));
        }
        begun
    }

    /// Takes the next stored bytes; before the first of them, `plain` plain bytes had been given.
    pub(super) fn push(&mut self, mut bytes: &[u8], plain: u64, mut event: impl FnMut(Event<'_>)) {
        self.is_untouched &= bytes.is_empty();
        while let Some(first) = bytes.first() {
            let taken = match self.place {
                Place::Header | Place::Block => {
                    self.header[self.have] = *first;
                    self.have += 1;
                    1
                }
                _ => bytes.len().min(usize::try_from(self.remaining).unwrap_or(usize::MAX)),
            };
            self.stored += taken as u64;
            match self.place {
                Place::Header => self.frame_header(plain, &mut event),
                Place::Block if self.have == 3 => self.block_header(&mut event),
                Place::Block => {}
                Place::Skippable | Place::Body | Place::Checksum => {
                    self.remaining -= taken as u64;
                    if self.place == Place::Body && self.kind == BlockKind::Compressed {
                        event(Event::Body {
                            bytes: &bytes[..taken],
                            is_first: self.is_first_byte,
                            is_last: self.remaining == 0,
                        });
                        self.is_first_byte = false;
                    }
                    if self.remaining == 0 {
                        self.content_end(&mut event);
                    }
                }
                Place::Lost => return,
            }
            bytes = &bytes[taken..];
        }
    }

    fn go(&mut self, place: Place, remaining: u64) {
        (self.place, self.have, self.remaining) = (place, 0, remaining);
    }

    /// Looks whether the frame header is complete.
    fn frame_header(&mut self, plain: u64, event: &mut impl FnMut(Event<'_>)) {
        if self.have < 5 {
            return;
        }
        let header = &self.header;
        let magic = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        if magic & !15 == MAGIC_SKIPPABLE {
            if self.have == 8 {
                match u32::from_le_bytes([header[4], header[5], header[6], header[7]]) {
                    0 => {
                        self.count(false);
                        self.go(Place::Header, 0);
                    }
                    bytes => self.go(Place::Skippable, u64::from(bytes)),
                }
            }
            return;
        }
        let descriptor = header[4];
        let is_single = descriptor & 0x20 != 0;
        let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let size_bytes = match descriptor >> 6 {
            0 => usize::from(is_single),
            log => 1 << log,
        };
        let size_start = 5 + usize::from(!is_single) + dictionary_bytes;
        if magic != MAGIC {
            return self.go(Place::Lost, 0);
        }
        if self.have < size_start + size_bytes {
            return;
        }
        let window_bytes = if is_single {
            let mut size = [0; 8];
            size[..size_bytes].copy_from_slice(&header[size_start..size_start + size_bytes]);
            // Two bytes count from 256 on.
            u64::from_le_bytes(size).saturating_add(if size_bytes == 2 { 256 } else { 0 })
        } else {
            super::state::window_bytes(header[5])
        };
        let stored_start = self.stored - self.have as u64;
        self.frame = Frame {
            window_bytes,
            has_size: size_bytes > 0,
            has_checksum: descriptor & 4 != 0,
            stored_start,
            plain_start: plain,
        };
        self.is_first_block = true;
        self.go(Place::Block, 0);
        event(Event::FrameStart);
    }

    fn block_header(&mut self, event: &mut impl FnMut(Event<'_>)) {
        let Some((is_last, kind, _, stored)) = block_header([self.header[0], self.header[1], self.header[2]])
        else {
            return self.go(Place::Lost, 0);
        };
        self.is_first_block = false;
        (self.is_last_block, self.kind, self.is_first_byte) = (is_last, kind, true);
        self.go(Place::Body, stored);
        if stored == 0 {
            self.content_end(event);
        }
    }

    /// What follows content that is complete.
    fn content_end(&mut self, event: &mut impl FnMut(Event<'_>)) {
        match self.place {
            Place::Body if !self.is_last_block => self.go(Place::Block, 0),
            Place::Body => {
                event(Event::FrameEnd);
                match self.frame.has_checksum {
                    true => self.go(Place::Checksum, 4),
                    false => {
                        self.count(true);
                        self.go(Place::Header, 0);
                    }
                }
            }
            place => {
                self.count(place == Place::Checksum);
                self.go(Place::Header, 0);
            }
        }
    }
}
