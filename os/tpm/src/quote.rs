//! Quotes: registers and a nonce, signed by the attestation key.

use croft_attest::public::alg;
use croft_attest::{PcrSelection, Quote, Reader, Writer};
use croft_protocol::{Hash, limits};

use crate::client::{Tpm, TpmError};
use crate::code::Code;
use crate::session::Auth;
use crate::transport::Transport;

impl<T: Transport> Tpm<T> {
    /// Signs the registers of a selection with a nonce: `Attestation::nonce` for registrations.
    ///
    /// # Errors
    /// [`TpmError`].
    pub fn quote(&mut self, selection: PcrSelection, nonce: &Hash) -> Result<Quote, TpmError> {
        self.quote_encoded(&selection.encode(), nonce)
    }

    /// A quote of another bank, which only a liar would send.
    ///
    /// # Errors
    /// [`TpmError`].
    #[cfg(feature = "swtpm")]
    pub fn quote_of_bank(
        &mut self,
        bank: u16,
        selection: PcrSelection,
        nonce: &Hash,
    ) -> Result<Quote, TpmError> {
        let mut encoded = selection.encode();
        encoded[4..6].copy_from_slice(&bank.to_be_bytes());
        self.quote_encoded(&encoded, nonce)
    }

    fn quote_encoded(&mut self, selection: &[u8], nonce: &Hash) -> Result<Quote, TpmError> {
        let key = self.attestation_key()?;
        // The key's own scheme.
        let parameters = Writer::new().sized(&nonce.0).u16(alg::NULL).bytes(selection).done();
        let (_, response) = self.run(Code::QUOTE, &[key.entity()], &mut [Auth::Password], parameters, 0)?;
        let mut reader = Reader::new("the TPM's quote", &response);
        let attest = reader.sized("statement", limits::TPM_QUOTE_BYTES)?.to_vec();
        let signature = Quote::signature(reader.remaining())?;
        Ok(Quote { attest, signature })
    }
}
