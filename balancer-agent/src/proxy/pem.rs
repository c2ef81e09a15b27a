//! Certificates, keys and authorities from PEM files: the one place where they are read,
//! for clients and for backends, by those who serve and by those who only check.

use std::path::Path;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{Error, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::model::http::CertificateFiles;
use crate::model::{Misfit, Named};

const CERTIFICATE: &str = "a PEM file with the certificate and its chain";
const KEY: &str =
    "a PEM file with the certificate's private key (PKCS#8, PKCS#1 or SEC1, not encrypted)";
const AUTHORITIES: &str = "a PEM file with the certificates of authorities";

/// A chain and its key, checked against each other.
///
/// # Errors
/// All that is wrong with the two files.
pub fn certified_key(files: &CertificateFiles) -> Result<CertifiedKey, Vec<Misfit>> {
    let of_key = |what: String| Misfit::new(Named::Key(files.clone()), what, KEY);
    let of_chain = |what: String| Misfit::new(Named::Certificate(files.clone()), what, CERTIFICATE);
    let chain = certificates(&files.certificate).and_then(|chain| {
        leaf(&chain)?;
        Ok(chain)
    });
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| pem_error("private key", error))
        .and_then(|key| {
            rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
                .map_err(|error| format!("holds a key that can't be used: {error}"))
        });
    let (chain, key) = match (chain, key) {
        (Ok(chain), Ok(key)) => (chain, key),
        (chain, key) => {
            let chain = chain.err().map(of_chain);
            return Err(chain.into_iter().chain(key.err().map(of_key)).collect());
        }
    };
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            let certificate = files.certificate.display();
            let what = format!("is not the key of the certificate in {certificate}");
            Err(vec![of_key(what)])
        }
        // Keys that can't tell their public half can't be compared.
        Err(rustls::Error::InconsistentKeys(_)) => Ok(certified),
        Err(error) => Err(vec![of_chain(format!("can't be used: {error}"))]),
    }
}

/// The authorities of a file.
///
/// # Errors
/// There are none, or one that can't be an authority.
pub fn authorities(named: Named, path: &Path) -> Result<RootCertStore, Misfit> {
    let misfit = |what: String| Misfit::new(named.clone(), what, AUTHORITIES);
    let mut store = RootCertStore::empty();
    for certificate in certificates(path).map_err(misfit)? {
        store.add(certificate).map_err(|error| {
            misfit(format!(
                "holds a certificate that can't be an authority: {error}"
            ))
        })?;
    }
    Ok(store)
}

/// What is odd about the time that a certificate is for.
pub fn validity(files: &CertificateFiles, leaf: &X509Certificate<'_>) -> Option<Misfit> {
    // Certificates are about the calendar: the wall clock is what they go by.
    let validity = leaf.validity();
    let now = x509_parser::time::ASN1Time::now();
    let what = if validity.not_after < now {
        format!("expired on {}", validity.not_after)
    } else if validity.not_before > now {
        format!("is not valid before {}", validity.not_before)
    } else {
        return None;
    };
    let named = Named::Certificate(files.clone());
    Some(Misfit::new(named, what, "a certificate that is valid now"))
}

/// The first certificate of a chain, which says whom it is for.
///
/// # Errors
/// What is wrong with it.
pub fn leaf<'c>(chain: &'c [CertificateDer<'_>]) -> Result<X509Certificate<'c>, String> {
    let first = chain.first().ok_or("holds no certificate")?;
    let (_, leaf) = X509Certificate::from_der(first)
        .map_err(|error| format!("does not begin with an X.509 certificate: {error}"))?;
    Ok(leaf)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| pem_error("certificate", error))?;
    match certificates.is_empty() {
        true => Err(pem_error("certificate", Error::NoItemsFound)),
        false => Ok(certificates),
    }
}

/// Says what a PEM reader did not like.
fn pem_error(wanted: &str, error: Error) -> String {
    match error {
        Error::Io(error) => format!("can't be read: {error}"),
        Error::NoItemsFound => format!("holds no {wanted} in PEM form"),
        other => format!("is not PEM: {other}"),
    }
}
