//! Certificates for tests: an authority, what it signed, and TLS clients that trust it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// An authority whose certificates lie in a directory.
pub struct Authority {
    dir: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

/// Paths of a certificate chain and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM, for its owner alone.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority; its own certificate is `NAME.pem` in the directory.
    pub fn new(dir: &Path, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).expect("write");
        Self {
            dir: dir.to_owned(),
            issuer: Issuer::new(params, key),
            certificate: certificate.der().clone(),
        }
    }

    /// Signs a certificate for these names, with this serial number, into `FILE.pem` and
    /// `FILE.key`; replaces those that are there, as certbot does.
    pub fn sign(&self, file: &str, names: &[&str], serial: u64) -> Pair {
        self.sign_with(file, names, serial, |_| {})
    }

    /// The same, for a certificate that expired long ago.
    pub fn sign_expired(&self, file: &str, names: &[&str], serial: u64) -> Pair {
        self.sign_with(file, names, serial, |params| {
            params.not_before = rcgen::date_time_ymd(2001, 1, 1);
            params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        })
    }

    fn sign_with(
        &self,
        file: &str,
        names: &[&str],
        serial: u64,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).expect("names");
        params.serial_number = Some(SerialNumber::from(serial));
        let common = names.first().map_or("", String::as_str);
        params.distinguished_name.push(DnType::CommonName, common);
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let pair = Pair {
            certificate: self.dir.join(format!("{file}.pem")),
            key: self.dir.join(format!("{file}.key")),
        };
        replace(&pair.certificate, &certificate.pem());
        replace(&pair.key, &key.serialize_pem());
        pair
    }

    /// A client that trusts this authority, with these protocols in ALPN.
    pub fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        // A resumed session shows the certificate of the first one.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// A client that shows a certificate.
    pub fn client_with(&self, pair: &Pair) -> Arc<ClientConfig> {
        let chain = CertificateDer::pem_file_iter(&pair.certificate).expect("a chain");
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("a chain");
        let key = PrivateKeyDer::from_pem_file(&pair.key).expect("a key");
        let config = ClientConfig::builder()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, key);
        Arc::new(config.expect("a client"))
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("an authority");
        roots
    }
}

/// As root's tools do: aside, then by name.
fn replace(path: &Path, text: &str) {
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .expect("a file");
    file.write_all(text.as_bytes()).expect("write");
    fs::rename(&aside, path).expect("rename");
}

/// The serial number of a certificate (DER), when it fits.
pub fn serial(certificate: &[u8]) -> Option<u64> {
    // Certificate, TBSCertificate, [0] version, INTEGER.
    let (_, inner) = element(certificate)?;
    let (_, body) = element(inner)?;
    let (tag, _) = element(body)?;
    let rest = match tag {
        0xa0 => after(body)?,
        _ => body,
    };
    let (tag, number) = element(rest)?;
    let fits = tag == 2 && number.len() <= 9;
    fits.then(|| {
        number
            .iter()
            .fold(0u64, |n, &byte| n << 8 | u64::from(byte))
    })
}

fn element(der: &[u8]) -> Option<(u8, &[u8])> {
    let (start, length) = content(der)?;
    Some((der[0], der.get(start..start + length)?))
}

fn after(der: &[u8]) -> Option<&[u8]> {
    let (start, length) = content(der)?;
    der.get(start + length..)
}

fn content(der: &[u8]) -> Option<(usize, usize)> {
    let first = usize::from(*der.get(1)?);
    if first < 0x80 {
        return Some((2, first));
    }
    let digits = der.get(2..2 + (first & 0x7f))?;
    let length = digits.iter().fold(0, |n, &byte| n << 8 | usize::from(byte));
    Some((2 + digits.len(), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_have_their_serial_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(dir.path(), "ca");
        for number in [1, 300, 70_000] {
            let pair = authority.sign("a", &["a.example"], number);
            let der = CertificateDer::from_pem_file(&pair.certificate).unwrap();
            assert_eq!(serial(&der), Some(number));
        }
    }
}
