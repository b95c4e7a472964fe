//! Times and bandwidths as people write them.

/// Microseconds of `2ms`, `500us`, `1s`.
pub fn micros(text: &str) -> Result<u64, String> {
    let found = scaled(text, &[("us", 1), ("µs", 1), ("ms", 1_000), ("s", 1_000_000)]);
    found
        .filter(|micros| (1..=60_000_000).contains(micros))
        .ok_or_else(|| "write a time from 1us to 60s, as 2ms, 500us or 1s".to_owned())
}

/// Bytes per second of `100MB/s`.
pub fn bandwidth(text: &str) -> Result<u64, String> {
    let units = [
        ("kB/s", 1_000),
        ("KB/s", 1_000),
        ("MB/s", 1_000_000),
        ("GB/s", 1_000_000_000),
        ("B/s", 1),
    ];
    scaled(text, &units)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "write a bandwidth above 0, as 100MB/s or 1GB/s".to_owned())
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?.trim(), *factor)))?;
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    let unit = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
    let number = format!("{whole}{part}").parse::<u64>().ok()?;
    number.checked_mul(factor).map(|scaled| scaled / unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_bandwidths_are_read_as_people_write_them() {
        for (text, micros_of) in
            [("2ms", 2_000), ("500us", 500), ("1.5 ms", 1_500), ("60s", 60_000_000), ("7µs", 7)]
        {
            assert_eq!(micros(text), Ok(micros_of), "{text}");
        }
        for wrong in ["", "2", "ms", "0ms", "61s", "-1ms", "1.ms.s", "99999999999999999999s"] {
            assert!(micros(wrong).is_err(), "{wrong}");
        }
        for (text, bytes) in
            [("100MB/s", 100_000_000), ("12.5MB/s", 12_500_000), ("1GB/s", 1_000_000_000)]
        {
            assert_eq!(bandwidth(text), Ok(bytes), "{text}");
        }
        for wrong in ["100", "0MB/s", "fast", "MB/s"] {
            assert!(bandwidth(wrong).is_err(), "{wrong}");
        }
    }
}
