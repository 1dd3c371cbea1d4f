//! Waits until the kernel's random pool is seeded, with a limit: keys made before would be guessable, and a wait
//! without a limit would be a hang without a reason.

use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use std::time::{Duration, Instant};

/// The jitter source needs about a second on slow machines.
const LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum EntropyError {
    #[error(
        "the kernel's random pool is not seeded after {} s: give the machine a CPU with RDRAND, a TPM or a virtio-rng \
         device",
        LIMIT.as_secs()
    )]
    NotReady,
    #[error("the kernel gives no random bytes")]
    Refused(#[source] Errno),
}

pub fn wait() -> Result<(), EntropyError> {
    wait_for(
        || rustix::rand::getrandom(&mut [0_u8; 1][..], GetRandomFlags::NONBLOCK).map(drop),
        Instant::now() + LIMIT,
    )
}

fn wait_for(mut ready: impl FnMut() -> Result<(), Errno>, until: Instant) -> Result<(), EntropyError> {
    loop {
        match ready() {
            Ok(()) => return Ok(()),
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < until => std::thread::sleep(PAUSE),
            Err(Errno::AGAIN | Errno::INTR) => return Err(EntropyError::NotReady),
            Err(error) => return Err(EntropyError::Refused(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_becomes_ready_is_waited_for() {
        let mut answers = vec![Err(Errno::AGAIN), Err(Errno::INTR), Ok(())].into_iter();
        wait_for(|| answers.next().unwrap(), Instant::now() + LIMIT).unwrap();
    }

    #[test]
    fn a_pool_that_never_is_ready_names_the_remedy() {
        let error = wait_for(|| Err(Errno::AGAIN), Instant::now()).unwrap_err().to_string();
        assert!(error.contains("not seeded after 30 s") && error.contains("virtio-rng"), "{error}");
    }

    #[test]
    fn a_kernel_that_refuses_is_no_reason_to_wait() {
        assert!(matches!(
            wait_for(|| Err(Errno::NOSYS), Instant::now() + LIMIT),
            Err(EntropyError::Refused(_))
        ));
    }
}
