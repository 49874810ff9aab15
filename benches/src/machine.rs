//! Where and when the figures were taken.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

/// The machine, in words.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) processors: String,
    pub(crate) kernel: String,
    pub(crate) virtualised: &'static str,
    pub(crate) date: String,
    pub(crate) socket_buffer_bytes: String,
}

impl Machine {
    pub(crate) fn inspect() -> Self {
        let processors = read("/proc/cpuinfo");
        let entry = |key: &str| {
            processors
                .lines()
                .find(|line| line.starts_with(key))?
                .split_once(':')
                .map(|(_, value)| value.trim())
        };
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let model = entry("model name").unwrap_or("of unknown model");
        let is_virtual =
            entry("flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self {
            processors: format!("{count} x {model}"),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            virtualised: if is_virtual { "virtual machine" } else { "no hypervisor reported" },
            date: utc(seconds),
            socket_buffer_bytes: read("/proc/sys/net/core/wmem_default").trim().to_owned(),
        }
    }

    /// The lines of the report's header.
    pub(crate) fn lines(&self) -> [(&'static str, String); 4] {
        [
            ("Machine", format!("{}, {}", self.processors, self.virtualised)),
            ("Kernel", format!("Linux {}", self.kernel)),
            ("Date", self.date.clone()),
            (
                "Sockets",
                format!(
                    "SO_SNDBUF and SO_RCVBUF at their defaults for everybody (net.core.wmem_default {})",
                    self.socket_buffer_bytes
                ),
            ),
        ]
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|_| "unknown".to_owned())
}

/// `YYYY-MM-DD hh:mm UTC` of a Unix time.
fn utc(seconds: u64) -> String {
    let (minutes, mut days) = (seconds / 60 % (24 * 60), seconds / (24 * 60 * 60));
    let mut year = 1970;
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02} UTC", days + 1, minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_735_689_599), "2024-12-31 23:59 UTC");
        assert_eq!(utc(4_102_444_800), "2100-01-01 00:00 UTC");
    }
}
