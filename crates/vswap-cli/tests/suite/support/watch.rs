//! Samples a job's resident memory from outside, every 10 ms, while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::processes::{self, Reading};

/// A running sampler.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Peak>>,
}

/// What a sampler saw.
#[derive(Clone, Debug, Default)]
pub struct Peak {
    /// The reading with the most bytes.
    pub reading: Reading,
    /// How many there were.
    pub samples: u64,
}

impl Watch {
    /// Starts sampling the processes with this mark.
    pub fn start(mark: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mark, stopped) = (mark.to_owned(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut peak = Peak::default();
            // Relaxed: it carries nothing else, the peak is handed over by the join.
            while !stopped.load(Ordering::Relaxed) {
                let next = Instant::now() + Duration::from_millis(10);
                if let Some(reading) = processes::resident_anon(&mark) {
                    peak.samples += 1;
                    if reading.bytes() > peak.reading.bytes() {
                        peak.reading = reading;
                    }
                }
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            peak
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops and reports.
    pub fn finish(mut self) -> Peak {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is taken here only");
        thread.join().expect("the sampler does not panic")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
