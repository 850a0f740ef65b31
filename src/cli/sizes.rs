//! Numbers of bytes on the command line.

/// A number of bytes as qemu-img takes it: `131072`, `128K`, `128k`, `0.5M`; and `128KiB`. All units are powers of 1024, so what
/// others take for powers of 1000 (`KB`) is none.
pub(super) fn bytes(word: &str) -> Result<u64, String> {
    let number = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = word[number.len()..].to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").unwrap_or(&unit) {
        "" | "b" if unit != "ib" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => {
            return Err(
                "expected a number of bytes, or one of K, M, G or T behind it (powers of 1024)".into()
            );
        }
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    // Seventeen digits times 2^60 are within 128 bits.
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 17 {
        return Err("expected a number, as in 128M or 1.5G".to_owned());
    }
    let too_many = || "that is more than there can be".to_owned();
    let whole: u128 = whole.parse().map_err(|_| too_many())?;
    let part: u128 = fraction.parse().map_err(|_| too_many())?;
    let scale = 10u128.pow(fraction.len() as u32);
    if !(part << shift).is_multiple_of(scale) {
        return Err("expected a whole number of bytes".to_owned());
    }
    let bytes = whole.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add((part << shift) / scale));
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(too_many)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (word, number) in [
            ("32768", 32768),
            ("512b", 512),
            ("512B", 512),
            ("128M", 128 << 20),
            ("128m", 128 << 20),
            ("4KiB", 4096),
            ("4kib", 4096),
            ("1.5M", 3 << 19),
            ("0.50K", 512),
            ("2.0", 2),
            ("1P", 1 << 50),
            ("15E", 15 << 60),
        ] {
            assert_eq!(bytes(word), Ok(number), "{word}");
        }
        let endless = format!("{}M", "9".repeat(60));
        for bad in [
            "",
            "K",
            "-1",
            "+1",
            "1X",
            "99999999T",
            "16E",
            "1 K",
            "1KB",
            "1iB",
            ".5M",
            "1.M",
            "1.5",
            "0.1M",
            "1.2.3M",
            "0x10",
            "1e3",
            "KiB",
            "0.000000000000000001M",
            &endless,
        ] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
