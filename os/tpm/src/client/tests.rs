//! A TPM that answers from a script: what a real one does once in a blue moon.

use proptest::prelude::*;

use super::*;
use crate::{SealPolicy, Sealed};

struct Scripted {
    /// Answered in order; the last one for ever.
    answers: Vec<Vec<u8>>,
    asked: Vec<Vec<u8>>,
    paused: Duration,
}

impl Transport for &mut Scripted {
    fn exchange(&mut self, command: &[u8], _: Duration) -> Result<Vec<u8>, TransportError> {
        self.asked.push(command.to_vec());
        let answer = self.answers[(self.asked.len() - 1).min(self.answers.len() - 1)].clone();
        Ok(answer)
    }

    fn pause(&mut self, time: Duration) {
        self.paused += time;
    }
}

fn code(code: u32) -> Vec<u8> {
    Writer::new().u16(TAG_NO_SESSIONS).u32(10).u32(code).done()
}

fn scripted(answers: Vec<Vec<u8>>) -> Scripted {
    Scripted { answers, asked: vec![], paused: Duration::ZERO }
}

#[test]
fn a_busy_tpm_is_asked_the_same_again() {
    for busy in [0x922, 0x908, 0x90a, 0x920, 0x923] {
        let mut script = scripted(vec![code(busy), code(busy), code(0)]);
        Tpm::new(&mut script).flush(0x8000_0000).unwrap();
        assert_eq!(script.asked.len(), 3);
        assert!(script.asked.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(script.paused, Duration::from_millis(30));
    }
}

#[test]
fn a_tpm_that_stays_busy_is_given_up_after_a_bounded_time() {
    let mut script = scripted(vec![code(0x922)]);
    let error = Tpm::new(&mut script).flush(0x8000_0000).unwrap_err().to_string();
    assert_eq!(error, "the TPM stayed busy through 40 tries of TPM2_FlushContext: power-cycle the machine");
    assert!(script.paused > Duration::from_secs(30) && script.paused < Duration::from_secs(90));
}

#[test]
fn a_lockout_says_how_long_it_lasts() {
    let property = |list: &[(u32, u32)]| {
        let head = Writer::new().u8(0).u32(6).u32(list.len() as u32);
        let body = list.iter().fold(head, |all, (id, value)| all.u32(*id).u32(*value)).done();
        Writer::new().u16(TAG_NO_SESSIONS).u32(10 + body.len() as u32).u32(0).bytes(&body).done()
    };
    let variable = property(&[(0x200, 1 << 9), (0x20e, 32), (0x20f, 32), (0x210, 600)]);
    let mut script = scripted(vec![code(0x921), property(&[(0x105, 0x4942_4d00)]), variable]);
    let error = Tpm::new(&mut script).flush(0x8000_0000).unwrap_err().to_string();
    assert_eq!(
        error,
        "the TPM is locked out after too many wrong passwords and refuses TPM2_FlushContext: leave the machine on for \
         600 s, or clear the TPM in the firmware setup, which loses its keys"
    );
}

#[test]
fn a_response_that_lies_about_its_size_or_counts_is_refused() {
    let mut script = scripted(vec![Writer::new().u16(TAG_NO_SESSIONS).u32(11).u32(0).done()]);
    let error = Tpm::new(&mut script).flush(1).unwrap_err().to_string();
    assert_eq!(error, "the TPM's response has size 0xb, wanted is as many bytes as came");
    let body = Writer::new().u8(0).u32(6).u32(0x0100_0000).done();
    let answer = Writer::new().u16(TAG_NO_SESSIONS).u32(10 + body.len() as u32).u32(0).bytes(&body).done();
    let mut script = scripted(vec![answer]);
    let error = Tpm::new(&mut script).properties().unwrap_err().to_string();
    assert!(error.ends_with("its count has 16777216, more than the limit of 256"), "{error}");
}

proptest! {
    #[test]
    fn a_tpm_that_answers_noise_makes_nothing_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..300),
        sessions in any::<bool>(),
        framed in 0u8..4,
    ) {
        let tag = if sessions { TAG_SESSIONS } else { TAG_NO_SESSIONS };
        // Mostly well framed and successful, or else nothing behind the header would be read.
        let answer = if framed == 0 { noise } else {
            Writer::new().u16(tag).u32(10 + noise.len() as u32).u32(0).bytes(&noise).done()
        };
        let mut script = scripted(vec![answer]);
        let mut tpm = Tpm::new(&mut script);
        let _ = tpm.properties();
        let _ = tpm.handles(0x8000_0000);
        let _ = tpm.pcr_read(PcrSelection::QUOTED);
        let _ = tpm.seal(b"seed", SealPolicy::SecureBoot);
        let _ = tpm.quote(PcrSelection::QUOTED, &Hash::ZERO);
        let _ = tpm.identity_state();
        let _ = tpm.counter();
        let _ = tpm.endorsement_certificate();
        let _ = tpm.endorsement_key();
    }

    #[test]
    fn no_bytes_make_the_reader_of_seals_panic(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Sealed::decode(&noise).is_err());
    }
}
