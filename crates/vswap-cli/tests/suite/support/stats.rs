//! The statistics file that `vswap run --stats` writes.

use serde_json::Value;

/// One run's statistics.
#[derive(Debug)]
pub struct Stats {
    json: Value,
}

impl Stats {
    /// Parses the file's text.
    pub fn parse(text: &str) -> Self {
        Self { json: serde_json::from_str(text).expect("--stats writes JSON") }
    }

    /// Value of a counter.
    pub fn counter(&self, name: &str) -> u64 {
        self.number("counters", name)
    }

    /// The most that a gauge ever showed.
    pub fn peak(&self, name: &str) -> u64 {
        self.number("peak", name)
    }

    /// All of it.
    pub fn json(&self) -> &Value {
        &self.json
    }

    fn number(&self, group: &str, name: &str) -> u64 {
        let value = self.json[group][name].as_u64();
        value.unwrap_or_else(|| panic!("no {name} among the {group}: {:#}", self.json))
    }

    /// Bytes of pages that the pool held for one byte of its payload, at their peaks, which come
    /// together; infinite where it held nothing.
    pub fn compression_ratio(&self) -> f64 {
        self.peak("pooled_bytes") as f64 / self.peak("payload_bytes") as f64
    }

    /// Pages that went to the pool and came back.
    pub fn assert_swapped(&self) {
        for counter in ["zswpout", "zswpin"] {
            assert!(
                self.counter(counter) > 0,
                "{counter} is 0: nothing was swapped: {:#}",
                self.json
            );
        }
    }

    /// Pages that went to the swap file and came back.
    pub fn assert_used_the_swap_file(&self) {
        for counter in ["pswpout", "pswpin"] {
            assert!(
                self.counter(counter) > 0,
                "{counter} is 0: the file was not used: {:#}",
                self.json
            );
        }
    }
}
