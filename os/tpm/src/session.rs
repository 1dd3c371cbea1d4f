//! Authorisation sessions: salted to the storage key, so that what passes encrypted can't be read on the bus, and each
//! command and response carries an HMAC (TPM 2.0 Library, part 1, chapters 17 to 19).

use croft_attest::kdf::{cfb_decrypt, cfb_encrypt, hmac, hmac_is, kdfa};
use croft_attest::{Reader, Writer};
use croft_protocol::Hash;
use zeroize::Zeroizing;

use crate::client::TpmError;
use crate::code::Code;

const CONTINUE: u8 = 1;
/// The first parameter of the command is encrypted.
const DECRYPT: u8 = 1 << 5;
/// The first parameter of the response is encrypted.
const ENCRYPT: u8 = 1 << 6;
/// TPM_RS_PW: an empty password.
const PASSWORD: u32 = 0x4000_0009;

/// An open session. Every object of ours has an empty password: what protects them is the TPM they are in, and policy.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) handle: u32,
    key: Zeroizing<Vec<u8>>,
    nonce_tpm: Vec<u8>,
    nonce_caller: [u8; 32],
}

/// What authorises the use of one handle.
pub(crate) enum Auth<'a> {
    Password,
    Session(&'a mut Session),
    /// The command's first parameter is a secret.
    Sends(&'a mut Session),
    /// The response's first parameter is a secret.
    Receives(&'a mut Session),
}

impl Session {
    /// A session from the secret that both sides have, and both nonces.
    pub(crate) fn new(handle: u32, salt: &[u8], nonce_caller: [u8; 32], nonce_tpm: &[u8]) -> Self {
        let key = kdfa(salt, "ATH", nonce_tpm, &nonce_caller, 256);
        Self { handle, key, nonce_tpm: nonce_tpm.to_vec(), nonce_caller }
    }

    /// Key and initial value of one parameter.
    fn cipher(&self, newer: &[u8], older: &[u8]) -> Zeroizing<Vec<u8>> {
        kdfa(&self.key, "CFB", newer, older, 256)
    }
}

impl Auth<'_> {
    fn parts(&mut self) -> Option<(&mut Session, u8)> {
        match self {
            Self::Password => None,
            Self::Session(session) => Some((session, CONTINUE)),
            Self::Sends(session) => Some((session, CONTINUE | DECRYPT)),
            Self::Receives(session) => Some((session, CONTINUE | ENCRYPT)),
        }
    }
}

/// The authorisation area of a command. Encrypts the first parameter in place where that is asked for.
pub(crate) fn authorise(
    auths: &mut [Auth<'_>],
    code: Code,
    names: &[Vec<u8>],
    parameters: &mut [u8],
) -> Result<Vec<u8>, TpmError> {
    for auth in auths.iter_mut() {
        let Some((session, flags)) = auth.parts() else { continue };
        getrandom::fill(&mut session.nonce_caller)
            .map_err(|e| TpmError::Entropy { reason: e.to_string() })?;
        if flags & DECRYPT != 0 {
            let cipher = session.cipher(&session.nonce_caller, &session.nonce_tpm);
            let end = 2 + first_size(code, parameters)?;
            cfb_encrypt(&cipher[..16], &cipher[16..], &mut parameters[2..end]);
        }
    }
    let command = [code.0.to_be_bytes().to_vec(), names.concat(), parameters.to_vec()].concat();
    let hash = Hash::of_bytes(&command);
    let mut area = Writer::new();
    for auth in auths {
        area = match auth.parts() {
            None => area.u32(PASSWORD).sized(&[]).u8(CONTINUE).sized(&[]),
            Some((session, flags)) => {
                let mac = hmac(&session.key, &[&hash.0, &session.nonce_caller, &session.nonce_tpm, &[flags]]);
                area.u32(session.handle).sized(&session.nonce_caller).u8(flags).sized(&mac)
            }
        };
    }
    Ok(area.done())
}

/// Checks the authorisation area of a response, and decrypts its first parameter where that was asked for.
pub(crate) fn check(
    auths: &mut [Auth<'_>],
    code: Code,
    parameters: &mut [u8],
    area: &[u8],
) -> Result<(), TpmError> {
    let response = [0u32.to_be_bytes().as_slice(), &code.0.to_be_bytes(), parameters].concat();
    let hash = Hash::of_bytes(&response);
    let mut reader = Reader::new("the TPM's response", area);
    for auth in auths {
        let nonce = reader.sized("session nonce", 64)?;
        let flags = reader.u8("session attributes")?;
        let mac = reader.sized("session HMAC", 64)?;
        let Some((session, _)) = auth.parts() else { continue };
        if !hmac_is(&session.key, &[&hash.0, nonce, &session.nonce_caller, &[flags]], mac) {
            return Err(TpmError::Forged { command: code.1 });
        }
        session.nonce_tpm = nonce.to_vec();
        if matches!(auth, Auth::Receives(_)) {
            let Some((session, _)) = auth.parts() else { continue };
            let cipher = session.cipher(&session.nonce_tpm, &session.nonce_caller);
            let end = 2 + first_size(code, parameters)?;
            cfb_decrypt(&cipher[..16], &cipher[16..], &mut parameters[2..end]);
        }
    }
    reader.finish()?;
    Ok(())
}

/// Size of the TPM2B at the front.
fn first_size(code: Code, parameters: &[u8]) -> Result<usize, TpmError> {
    let mut reader = Reader::new(code.1, parameters);
    Ok(reader.sized("first parameter", parameters.len())?.len())
}
