//! Amounts as people write them: `512M`, `4G`, `90s`, `24h`.

/// A text that is no amount.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not {what}: write {example}")]
pub struct InvalidAmount {
    pub text: String,
    pub what: &'static str,
    pub example: &'static str,
}

/// Bytes from `4096`, `64K`, `512M`, `4G`, `2T` (powers of 1024; `Mi`, `MiB` and `MB` mean the same).
///
/// # Errors
/// [`InvalidAmount`] for anything else, zero included, and for more than 2^63 bytes.
pub fn parse_bytes(text: &str) -> Result<u64, InvalidAmount> {
    let error = || InvalidAmount {
        text: text.chars().take(80).collect(),
        what: "a size",
        example: "a whole number with K, M, G or T, such as 512M",
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| error())?;
    let shift = match &text[digits..] {
        "" | "B" => 0,
        "K" | "Ki" | "KB" | "KiB" => 10,
        "M" | "Mi" | "MB" | "MiB" => 20,
        "G" | "Gi" | "GB" | "GiB" => 30,
        "T" | "Ti" | "TB" | "TiB" => 40,
        _ => return Err(error()),
    };
    match number.checked_mul(1 << shift) {
        Some(bytes) if bytes > 0 && i64::try_from(bytes).is_ok() => Ok(bytes),
        _ => Err(error()),
    }
}

/// Seconds from `90s`, `15m`, `24h`, `30d`.
///
/// # Errors
/// [`InvalidAmount`] for anything else, zero included.
pub fn parse_seconds(text: &str) -> Result<u64, InvalidAmount> {
    let error = || InvalidAmount {
        text: text.chars().take(80).collect(),
        what: "a duration",
        example: "a whole number with s, m, h or d, such as 24h",
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| error())?;
    let unit = match &text[digits..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(error()),
    };
    number.checked_mul(unit).filter(|s| *s > 0).ok_or_else(error)
}

/// Thousandths of a CPU from `1`, `0.5`, `250m`.
///
/// # Errors
/// [`InvalidAmount`] for anything else, zero included, and for more than 1024 CPUs.
pub fn parse_cpu_millis(text: &str) -> Result<u32, InvalidAmount> {
    let error = || InvalidAmount {
        text: text.chars().take(80).collect(),
        what: "a number of CPUs",
        example: "1, 0.5 or 250m",
    };
    // `parse` alone would take a sign.
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let millis = if let Some(millis) = text.strip_suffix('m') {
        millis.parse::<u32>().ok().filter(|_| digits(millis)).ok_or_else(error)?
    } else {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        if !digits(whole) || fraction.len() > 3 || !digits(fraction) {
            return Err(error());
        }
        let whole: u32 = whole.parse().map_err(|_| error())?;
        let fraction: u32 = format!("{fraction:0<3}").parse().map_err(|_| error())?;
        whole.checked_mul(1000).and_then(|w| w.checked_add(fraction)).ok_or_else(error)?
    };
    if (1..=1_024_000).contains(&millis) { Ok(millis) } else { Err(error()) }
}

/// Bytes as people read them, rounded to one decimal.
#[must_use]
pub fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut tenths = u128::from(bytes) * 10;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    if tenths % 10 == 0 {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// How long ago or how long: `45 s`, `12 min`, `3 h`, `2 d`.
#[must_use]
pub fn show_duration(seconds: u64) -> String {
    match seconds {
        0..=99 => format!("{seconds} s"),
        100..=5_999 => format!("{} min", seconds / 60),
        6_000..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A time as `2025-01-31 12:34:56 UTC`.
#[must_use]
pub fn show_time(ms: u64) -> String {
    let seconds = ms / 1000;
    // Civil date from days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let z = seconds / 86_400 + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_cpus_read_as_written() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("4GiB"), Ok(4 << 30));
        assert_eq!(parse_seconds("24h"), Ok(86_400));
        assert_eq!(parse_cpu_millis("0.5"), Ok(500));
        assert_eq!(parse_cpu_millis("250m"), Ok(250));
        assert_eq!(parse_cpu_millis("2"), Ok(2000));
    }

    #[test]
    fn times_and_durations_read_as_people_write_them() {
        assert_eq!(show_time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(show_time(1_709_210_096_789), "2024-02-29 12:34:56 UTC");
        assert_eq!(show_time(1_735_689_599_000), "2024-12-31 23:59:59 UTC");
        assert_eq!(show_duration(59), "59 s");
        assert_eq!(show_duration(3_600), "60 min");
        assert_eq!(show_duration(86_400), "24 h");
        assert_eq!(show_duration(30 * 86_400), "30 d");
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for bad in ["", "G", "0", "1.5G", "-1", "99999999T", "1X"] {
            let error = parse_bytes(bad).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("'{bad}' is not a size: write a whole number with K, M, G or T, such as 512M")
            );
        }
        assert!(parse_seconds("5").is_err());
        assert!(parse_cpu_millis("0").is_err());
        assert!(parse_cpu_millis("0.0001").is_err());
        assert!(parse_cpu_millis("2000").is_err());
        for bad in ["+1", "+250m", "-1", "1.", ".5", "1.+5", "m", ""] {
            let error = parse_cpu_millis(bad).unwrap_err().to_string();
            assert_eq!(error, format!("'{bad}' is not a number of CPUs: write 1, 0.5 or 250m"));
        }
    }

    #[test]
    fn bytes_are_shown_rounded() {
        assert_eq!(show_bytes(0), "0 B");
        assert_eq!(show_bytes(1536), "1.5 KiB");
        assert_eq!(show_bytes(4 << 30), "4 GiB");
    }
}
