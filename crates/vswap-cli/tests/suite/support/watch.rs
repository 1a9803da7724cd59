//! Samples a job's resident memory from outside, every 10 ms, while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::processes;

/// A running sampler.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    peak: AtomicU64,
    samples: AtomicU64,
}

/// What a sampler saw.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// The most bytes that were resident at once.
    pub bytes: u64,
    /// How often it looked.
    pub samples: u64,
}

impl Watch {
    /// Starts sampling the processes with this mark.
    pub fn start(mark: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let (mark, inner) = (mark.to_owned(), Arc::clone(&shared));
        // Relaxed throughout: the values are read after the thread was joined.
        let thread = std::thread::spawn(move || {
            while !inner.stop.load(Ordering::Relaxed) {
                let next = Instant::now() + Duration::from_millis(10);
                inner.peak.fetch_max(processes::resident_anon(&mark), Ordering::Relaxed);
                inner.samples.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        Self { shared, thread: Some(thread) }
    }

    /// Stops and reports.
    pub fn finish(mut self) -> Peak {
        self.stop();
        Peak {
            bytes: self.shared.peak.load(Ordering::Relaxed),
            samples: self.shared.samples.load(Ordering::Relaxed),
        }
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the sampler does not panic");
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}
