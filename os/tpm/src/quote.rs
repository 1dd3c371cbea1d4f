//! Quotes: registers and a nonce, signed by the attestation key; and the attestation that a registration carries.

use croft_attest::pcr::replay;
use croft_attest::public::alg;
use croft_attest::{MeasuredBoot, PcrSelection, Quote, Reader, Writer};
use croft_protocol::attestation::{Attestation, SignedVoucher};
use croft_protocol::{ChainId, Hash, NodeId, limits};

use crate::client::{Tpm, TpmError};
use crate::code::Code;
use crate::session::Auth;
use crate::transport::Transport;

/// To what an attestation is bound.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    pub chain: &'a ChainId,
    /// A recent final header: its height and hash.
    pub height: u64,
    pub header: Hash,
    pub node: &'a NodeId,
    /// [`Attestation::statement`] of what the node registers.
    pub statement: Hash,
}

impl<T: Transport> Tpm<T> {
    /// What a registration carries: a quote for this moment, with the log that explains it.
    ///
    /// # Errors
    /// [`TpmError::LogDiffers`] when the log does not explain the registers: nobody would believe it.
    pub fn attest(
        &mut self,
        moment: &Moment<'_>,
        boot: MeasuredBoot,
        vouchers: Vec<SignedVoucher>,
    ) -> Result<Attestation, TpmError> {
        let MeasuredBoot { locality, events } = boot;
        let expected = replay(PcrSelection::QUOTED, locality, &events);
        let values = self.pcr_read(PcrSelection::QUOTED)?;
        if let Some((pcr, _)) = values.iter().find(|(pcr, value)| expected.get(pcr) != Some(value)) {
            return Err(TpmError::LogDiffers { pcr: *pcr });
        }
        let key = self.attestation_key()?.key;
        let Moment { chain, height, header, node, statement } = moment;
        let nonce = Attestation::nonce(chain, *height, header, node, statement, &key.hash());
        let Quote { attest, signature } = self.quote(PcrSelection::QUOTED, &nonce)?;
        let attestation = Attestation {
            height: *height,
            key: key.encoded().to_vec(),
            quote: attest,
            signature,
            locality,
            events,
            vouchers,
        };
        attestation.check()?;
        Ok(attestation)
    }

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
