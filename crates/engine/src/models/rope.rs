//! Rotary position embedding: which angles a model turns its heads by.

use std::fmt;

use super::file::JsonFile;
use crate::Error;

/// Every parameter of the rotation. Two models with equal `Display` turn alike.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rope {
    pub theta: f64,
    /// `None` = unscaled.
    pub llama3: Option<Llama3Scaling>,
}

/// Llama 3's stretching: long wavelengths by `factor`, short ones not at all, those between smoothly.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Llama3Scaling {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_max_position_embeddings: f64,
}

impl Rope {
    /// From `rope_parameters` (as transformers 5 writes it) or `rope_theta` and `rope_scaling`.
    pub(super) fn read(file: &JsonFile) -> Result<Self, Error> {
        let new = file.object("rope_parameters")?;
        let scaling = if new.is_some() { new.clone() } else { file.object("rope_scaling")? };
        let theta = match &new {
            Some(new) if new.get("rope_theta").is_some() => new.positive("rope_theta", None)?,
            _ => file.positive("rope_theta", Some(10_000.0))?,
        };
        for object in std::iter::once(file).chain(&scaling) {
            if object.positive("partial_rotary_factor", Some(1.0))? != 1.0 {
                return Err(object.unsupported("partial_rotary_factor", "1"));
            }
        }
        let Some(scaling) = scaling else { return Ok(Self { theta, llama3: None }) };
        let key =
            if scaling.get("rope_type").is_none() && scaling.get("type").is_some() { "type" } else { "rope_type" };
        match scaling.text(key) {
            Some("default") => Ok(Self { theta, llama3: None }),
            None if new.is_some() && scaling.get(key).is_none() => Ok(Self { theta, llama3: None }),
            Some("llama3") => Ok(Self { theta, llama3: Some(Llama3Scaling::read(&scaling)?) }),
            _ => Err(scaling.unsupported(key, "default, llama3")),
        }
    }

    /// Radians per position for each pair of a head, `head_dim / 2` of them.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let plain = (0..head_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / head_dim as f64));
        plain.map(|frequency| self.llama3.map_or(frequency, |scaling| scaling.stretch(frequency)) as f32).collect()
    }
}

impl Llama3Scaling {
    fn read(scaling: &JsonFile) -> Result<Self, Error> {
        let read = Self {
            factor: scaling.positive("factor", None)?,
            low_freq_factor: scaling.positive("low_freq_factor", None)?,
            high_freq_factor: scaling.positive("high_freq_factor", None)?,
            original_max_position_embeddings: scaling.positive("original_max_position_embeddings", None)?,
        };
        if read.high_freq_factor <= read.low_freq_factor {
            return Err(scaling.unsupported("high_freq_factor", "more than low_freq_factor"));
        }
        Ok(read)
    }

    fn stretch(&self, frequency: f64) -> f64 {
        let turns = self.original_max_position_embeddings * frequency / std::f64::consts::TAU;
        if turns > self.high_freq_factor {
            frequency
        } else if turns < self.low_freq_factor {
            frequency / self.factor
        } else {
            let smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
            (1.0 - smooth) * frequency / self.factor + smooth * frequency
        }
    }
}

impl fmt::Display for Rope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "theta={}", self.theta)?;
        let Some(s) = self.llama3 else { return Ok(()) };
        write!(f, " llama3 factor={} low={} high={}", s.factor, s.low_freq_factor, s.high_freq_factor)?;
        write!(f, " original={}", s.original_max_position_embeddings)
    }
}
