use super::*;

use std::process::Command;

use crate::keys::testing::signer;
use crate::testing::boot_file;

fn trusted(name: &str) -> Vec<Cert> {
    vec![signer(name).cert().clone()]
}

#[test]
fn a_signed_file_is_a_function_of_file_and_key_and_verifies() {
    for trailing in [0, 1, 7, 8] {
        let file = boot_file(trailing);
        let signed = sign(&file, &signer("db")).unwrap();
        assert_eq!(signed, sign(&file, &signer("db")).unwrap());
        let certs = trusted("db");
        assert_eq!(verify(&signed, &certs).unwrap().subject(), "CN=Croft db,O=Test Farm");
        let pe = Pe::parse(&signed).unwrap();
        assert_eq!(pe.checksums().0, pe.checksums().1);
        assert!(signed.len().is_multiple_of(8));
        assert_eq!(strip(&signed).unwrap().len(), file.len().next_multiple_of(8));
    }
}

#[test]
fn no_bit_of_a_signed_file_can_change_unseen() {
    let signed = sign(&boot_file(8), &signer("db")).unwrap();
    let certs = trusted("db");
    let sections = 0x200..signed.len() - Pe::parse(&signed).unwrap().certificates().len();
    // The hash takes what the sections hold as it comes; of that, some bytes are enough.
    for at in (0..signed.len()).filter(|at| !sections.contains(at) || at % 61 == 0) {
        let mut altered = signed.clone();
        altered[at] ^= 1 << (at % 8);
        assert!(verify(&altered, &certs).is_err(), "byte {at} changed unseen");
    }
}

#[test]
fn each_reason_for_refusing_a_file_has_its_message() {
    let file = boot_file(0);
    let signed = sign(&file, &signer("db")).unwrap();
    let certs = trusted("db");
    assert!(
        verify(&file, &certs).unwrap_err().to_string().starts_with("the boot file is not signed: sign it")
    );
    let mut altered = signed.clone();
    altered[0x300] ^= 1;
    let message = verify(&altered, &certs).unwrap_err().to_string();
    assert!(message.starts_with("the boot file was altered after it was signed: its hash is "), "{message}");
    let others = trusted("KEK");
    let error = verify(&signed, &others).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        source.contains("'CN=Croft db,O=Test Farm'") && source.contains("('CN=Croft KEK,O=Test Farm')"),
        "{source}"
    );
    assert!(matches!(sign(&signed, &signer("db")), Err(SignFileError::Signed)));
    let table = Pe::parse(&signed).unwrap().certificates().len();
    let mut longer = signed.clone();
    let at = signed.len() - table;
    longer[at] ^= 0xff;
    assert!(matches!(verify(&longer, &certs), Err(VerifyFileError::Table)));
}

#[test]
fn a_certificate_of_the_same_name_with_another_key_does_not_verify() {
    let signed = sign(&boot_file(0), &signer("db")).unwrap();
    // Same issuer and serial number, another key: only possible by taking the certificate apart.
    let mut forged = signer("db").cert().der().to_vec();
    let modulus = signer("db").cert().public_key().to_vec();
    let at = forged.windows(modulus.len()).position(|window| window == modulus).unwrap();
    forged[at + 100] ^= 1;
    let forged = [Cert::from_der(&forged).unwrap()];
    assert!(matches!(
        verify(&signed, &forged),
        Err(VerifyFileError::Signature(VerifyError::Signature { .. }))
    ));
}

/// sbverify is what distributions check with. Not everybody has it.
#[test]
fn sbverify_accepts_what_we_sign_and_refuses_what_was_altered() {
    if Command::new("sbverify").arg("--version").output().is_err() {
        eprintln!("sbverify is not installed (package sbsigntool): not compared");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (file, cert, other) =
        (dir.path().join("boot.efi"), dir.path().join("db.pem"), dir.path().join("kek.pem"));
    for (name, path) in [("db", &cert), ("KEK", &other)] {
        std::fs::write(path, pem(signer(name).cert().der())).unwrap();
    }
    let check = |bytes: &[u8], cert: &std::path::Path| {
        std::fs::write(&file, bytes).unwrap();
        let output = Command::new("sbverify").arg("--cert").arg(cert).arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for trailing in [0, 3, 8] {
        let signed = sign(&boot_file(trailing), &signer("db")).unwrap();
        let (accepted, message) = check(&signed, &cert);
        assert!(accepted, "{message}");
        assert!(!check(&signed, &other).0, "another certificate");
        let mut altered = signed.clone();
        altered[0x300] ^= 1;
        assert!(!check(&altered, &cert).0, "an altered file");
    }
}

/// And what sbsign signs, we accept.
#[test]
fn we_accept_what_sbsign_signs() {
    if Command::new("sbsign").arg("--version").output().is_err() {
        eprintln!("sbsign is not installed (package sbsigntool): not compared");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("boot.efi"), boot_file(0)).unwrap();
    std::fs::write(path("db.pem"), pem(signer("db").cert().der())).unwrap();
    std::fs::write(path("db.key"), include_bytes!("../tests/keys/db.key")).unwrap();
    let pem_key =
        Command::new("openssl").args(["pkey", "-inform", "der", "-in"]).arg(path("db.key")).output().unwrap();
    std::fs::write(path("db.key.pem"), pem_key.stdout).unwrap();
    let mut sbsign = Command::new("sbsign");
    sbsign.arg("--key").arg(path("db.key.pem")).arg("--cert").arg(path("db.pem"));
    let output = sbsign.arg("--output").arg(path("signed.efi")).arg(path("boot.efi")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let signed = std::fs::read(path("signed.efi")).unwrap();
    let certs = trusted("db");
    verify(&signed, &certs).unwrap();
    assert_eq!(
        Pe::parse(&signed).unwrap().hash(),
        Pe::parse(&sign(&boot_file(0), &signer("db")).unwrap()).unwrap().hash()
    );
}

fn pem(der: &[u8]) -> String {
    der::pem::encode_string("CERTIFICATE", der::pem::LineEnding::LF, der).unwrap()
}
