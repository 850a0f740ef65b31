//! Objects through plain decoders, none of them ours.

/// The plain bytes that a decoder gives of `stored` from its start, up to the first error, `most` at most. Fed one byte at a time, so that all is
/// given that lies before what is wrong.
pub(crate) fn decode(compression: &str, stored: &[u8], most: usize) -> Vec<u8> {
    match compression {
        "none" => stored[..stored.len().min(most)].to_vec(),
        "zlib" => zlib(stored, most),
        "bz2" => bz2(stored, most),
        "zstd" => zstd(stored, most),
        other => unreachable!("no fixture is compressed with {other:?}"),
    }
}

fn zlib(stored: &[u8], most: usize) -> Vec<u8> {
    let mut plain = vec![0; most];
    let mut inflate = flate2::Decompress::new(true);
    for byte in stored.chunks(1) {
        let at = inflate.total_out() as usize;
        match inflate.decompress(byte, &mut plain[at..], flate2::FlushDecompress::None) {
            Ok(flate2::Status::Ok | flate2::Status::BufError) => {}
            Ok(flate2::Status::StreamEnd) | Err(_) => break,
        }
    }
    plain.truncate(inflate.total_out() as usize);
    plain
}

fn bz2(stored: &[u8], most: usize) -> Vec<u8> {
    let mut plain = vec![0; most];
    let (mut before, mut bunzip) = (0, bzip2::Decompress::new(false));
    for byte in stored.chunks(1) {
        let at = before + bunzip.total_out() as usize;
        match bunzip.decompress(byte, &mut plain[at..]) {
            Ok(bzip2::Status::StreamEnd) => {
                before += bunzip.total_out() as usize;
                bunzip = bzip2::Decompress::new(false);
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    plain.truncate(before + bunzip.total_out() as usize);
    plain
}

fn zstd(stored: &[u8], most: usize) -> Vec<u8> {
    use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};
    let mut plain = vec![0; most];
    let (mut at, mut decoder) = (0, Decoder::new().unwrap());
    for byte in stored.chunks(1) {
        let mut input = InBuffer::around(byte);
        loop {
            let mut output = OutBuffer::around(&mut plain[at..]);
            let result = decoder.run(&mut input, &mut output);
            let given = output.pos();
            at += given;
            if result.is_err() {
                plain.truncate(at);
                return plain;
            }
            if given == 0 && input.pos() == 1 {
                break;
            }
            if given == 0 && at == most {
                break;
            }
        }
    }
    plain.truncate(at);
    plain
}
