//! What was measured of a squished checkpoint, as the checkpoint itself says. `docs/evaluation.md` defines the numbers.

use super::Checkpoint;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Number;
use std::collections::BTreeMap;

/// The certificate: a part of the [`Manifest`](super::Manifest) of the first weights file. Everything in it was
/// counted or measured by the tool that wrote it; what was not measured is absent. It is a statement, no
/// signature: who can change the weights can change it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// Weights of the model, before any packing.
    pub parameters: u64,
    /// Bytes of all weights files, headers counted, this text too.
    pub file_bytes: u64,
    /// `8 * file_bytes / parameters`, rounded to six decimals.
    pub bits_per_parameter: f64,
    /// The command line of the compression; paths are shortened to their last component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The checkpoint that was compressed: the hash of its files' hashes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<Source>,
    /// What it was calibrated on, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// What was measured since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measurements: Vec<Measurement>,
}

/// Something that was read: a text, a file of questions, a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name, without directories.
    pub name: String,
    /// SHA-256 of its bytes in lower-case hexadecimal.
    pub sha256: String,
}

/// What a checkpoint was calibrated on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// The text. Text that the model wrote itself is named `self`.
    #[serde(flatten)]
    pub source: Source,
    /// Windows that the model saw.
    pub windows: u64,
    /// Tokens of a window.
    pub window: u64,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The task: `kl`, `perplexity`, or the name of a benchmark.
    pub what: String,
    /// The text or the questions.
    pub data: Source,
    /// The original checkpoint, for what compares with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Source>,
    /// The numbers by name, and how much of the data was used.
    pub values: BTreeMap<String, Number>,
    /// Name and version of the tool that measured.
    pub tool: String,
    /// Its command line; paths are shortened to their last component.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
}

/// What a caller asks of a certificate. The default asks for one that is there and counts the files' true bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CertificateDemand {
    /// The mean divergence from the original that was measured is at most this, in nats per token.
    pub max_kl: Option<f64>,
    /// The likelihood lost against the original that was measured is at most this, in nats per token.
    pub max_nats_lost: Option<f64>,
    /// Only measurements on the text with this SHA-256 count.
    pub text_sha256: Option<String>,
}

impl Certificate {
    /// A certificate that counts bytes and states nothing else.
    pub fn new(parameters: u64, file_bytes: u64) -> Self {
        let mut certificate = Self {
            parameters,
            file_bytes: 0,
            bits_per_parameter: 0.0,
            command: None,
            original: None,
            calibration: None,
            measurements: Vec::new(),
        };
        certificate.count(file_bytes);
        certificate
    }

    /// States these bytes, and the bits that follow.
    pub fn count(&mut self, file_bytes: u64) {
        self.file_bytes = file_bytes;
        let bits = 8.0 * file_bytes as f64 / self.parameters.max(1) as f64;
        self.bits_per_parameter = (bits * 1e6).round() / 1e6;
    }

    /// As long a text as this one can become once its bytes are counted: what a writer reserves room for.
    pub fn reserved(&self) -> Self {
        Self { file_bytes: u64::MAX, bits_per_parameter: 11111.111111, ..self.clone() }
    }

    /// Adds a measurement, in the place of an earlier one of the same kind on the same data.
    pub fn add(&mut self, measurement: Measurement) {
        let same =
            |m: &&mut Measurement| m.what == measurement.what && m.data.sha256 == measurement.data.sha256;
        match self.measurements.iter_mut().find(same) {
            Some(earlier) => *earlier = measurement,
            None => self.measurements.push(measurement),
        }
    }

    /// What of a demand is not met.
    fn lacks(&self, demand: &CertificateDemand, file_bytes: u64) -> Option<String> {
        if self.file_bytes != file_bytes {
            let said = self.file_bytes;
            return Some(format!(
                "the certificate counts {said} bytes of weights, the files have {file_bytes}"
            ));
        }
        let counts = |m: &&Measurement| {
            m.what == "kl" && demand.text_sha256.as_ref().is_none_or(|sha256| *sha256 == m.data.sha256)
        };
        if *demand != CertificateDemand::default() && !self.measurements.iter().any(|m| counts(&m)) {
            let text =
                demand.text_sha256.as_ref().map(|sha256| format!(" on the text with SHA-256 {sha256}"));
            return Some(format!("no divergence from the original was measured{}", text.unwrap_or_default()));
        }
        for measurement in self.measurements.iter().filter(counts) {
            let limits = [("kl_mean", demand.max_kl), ("nats_lost", demand.max_nats_lost)];
            for (name, limit) in limits.into_iter().filter_map(|(name, limit)| Some((name, limit?))) {
                let data = &measurement.data.name;
                match measurement.values.get(name).and_then(Number::as_f64) {
                    Some(value) if value <= limit => {}
                    Some(value) => {
                        return Some(format!("{name} is {value:.6} on {data}, expected at most {limit}"));
                    }
                    None => return Some(format!("{name} was not measured on {data}")),
                }
            }
        }
        None
    }
}

impl Checkpoint {
    /// The certificate, if the checkpoint carries one.
    pub fn certificate(&self) -> Option<&Certificate> {
        self.manifest()?.certificate.as_ref()
    }

    /// The certificate, which must be there and meet a demand. Every measurement that counts must be within the
    /// limits, not only the best.
    ///
    /// # Errors
    /// [`Error::Certificate`], which names the file and what is missing.
    pub fn require_certificate(&self, demand: &CertificateDemand) -> Result<&Certificate> {
        let file_bytes = self.shards().iter().map(|shard| shard.file_bytes() as u64).sum();
        let refuse = |reason: String| Error::Certificate { path: self.shards()[0].path().into(), reason };
        let certificate =
            self.certificate().ok_or_else(|| refuse("the weights carry no certificate".into()))?;
        match certificate.lacks(demand, file_bytes) {
            Some(reason) => Err(refuse(reason)),
            None => Ok(certificate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(what: &str, text: &str, kl: f64) -> Measurement {
        Measurement {
            what: what.into(),
            data: Source { name: format!("{text}.txt"), sha256: text.into() },
            against: None,
            values: BTreeMap::from([("kl_mean".to_string(), Number::from_f64(kl).unwrap())]),
            tool: "test".into(),
            command: None,
        }
    }

    #[test]
    fn a_later_measurement_replaces_an_earlier_one_on_the_same_data() {
        let mut certificate = Certificate::new(1000, 250);
        assert_eq!(certificate.bits_per_parameter, 2.0);
        let length = |certificate: &Certificate| serde_json::to_string(certificate).unwrap().len();
        assert!(length(&Certificate::new(3, 1000)) < length(&certificate.reserved()));
        for (what, text, kl) in
            [("kl", "a", 0.5), ("kl", "b", 0.2), ("perplexity", "a", 1.0), ("kl", "a", 0.1)]
        {
            certificate.add(measured(what, text, kl));
        }
        assert_eq!(certificate.measurements.len(), 3);
        assert_eq!(certificate.measurements[0], measured("kl", "a", 0.1));
    }

    #[test]
    fn demands() {
        let mut certificate = Certificate::new(1000, 250);
        let lacks = |certificate: &Certificate, demand: &CertificateDemand| certificate.lacks(demand, 250);
        let any = CertificateDemand::default();
        let small = CertificateDemand { max_kl: Some(0.15), ..any.clone() };
        let on_b = CertificateDemand { text_sha256: Some("b".into()), ..small.clone() };
        assert_eq!(lacks(&certificate, &any), None);
        assert!(
            certificate.lacks(&any, 251).unwrap().contains("counts 250 bytes of weights, the files have 251")
        );
        assert!(lacks(&certificate, &small).unwrap().contains("no divergence"));

        certificate.add(measured("kl", "a", 0.1));
        assert_eq!(lacks(&certificate, &small), None);
        assert!(lacks(&certificate, &on_b).unwrap().contains("SHA-256 b"));
        let lost = CertificateDemand { max_nats_lost: Some(1.0), ..any };
        assert_eq!(lacks(&certificate, &lost).unwrap(), "nats_lost was not measured on a.txt");

        certificate.add(measured("kl", "b", 0.2));
        assert_eq!(
            lacks(&certificate, &small).unwrap(),
            "kl_mean is 0.200000 on b.txt, expected at most 0.15"
        );
        assert!(lacks(&certificate, &CertificateDemand { max_kl: Some(f64::NAN), ..on_b }).is_some());
    }
}
