//! The tensors of a model directory: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.
//!
//! Files are mapped and their headers checked; a tensor's bytes are first read when they are used.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kernels::{Element, Isa, MappedFile, WeightView};
use safetensors::tensor::{Dtype, Metadata, SafeTensors};

use crate::Error;
use crate::models::file::JsonFile;

/// Every tensor of a model, by name.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `model.safetensors` or the index: what errors about missing tensors name.
    path: PathBuf,
    tensors: BTreeMap<String, Stored>,
    /// Bytes of all files.
    bytes: u64,
    /// Length and time of change of each file.
    stamp: String,
}

/// Where a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    path: Arc<Path>,
    file: Arc<MappedFile>,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    range: Range<usize>,
}

/// A matrix `[rows][cols]`, or a part of one, in a mapped file.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    file: Arc<MappedFile>,
    range: Range<usize>,
    element: Element,
    whole: [usize; 2],
    rows: Range<usize>,
    cols: Range<usize>,
}

impl Weights {
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        let (path, files) = if index.exists() && !single.exists() {
            let files = shards(&index)?;
            (index, files)
        } else {
            (single, BTreeSet::from(["model.safetensors".to_owned()]))
        };
        let mut weights = Self { path, tensors: BTreeMap::new(), bytes: 0, stamp: String::new() };
        for file in files {
            weights.add_file(&dir.join(file))?;
        }
        Ok(weights)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let file = MappedFile::open(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let changed = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        let changed = changed.map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let _ = write!(self.stamp, "{} {changed:?};", file.bytes().len());
        let (file, path): (_, Arc<Path>) = (Arc::new(file), path.into());
        let malformed =
            |error| Error::Malformed { path: path.to_path_buf(), reason: format!("not safetensors: {error}") };
        // The crate refuses headers above 100 MB, and offsets that do not fill the file exactly.
        let (header, metadata): (usize, Metadata) = SafeTensors::read_metadata(file.bytes()).map_err(malformed)?;
        let data = header + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            let range = data + info.data_offsets.0..data + info.data_offsets.1;
            let (path, file) = (Arc::clone(&path), Arc::clone(&file));
            let stored = Stored { path, file, dtype: info.dtype, shape: info.shape.clone(), range };
            self.tensors.insert(name, stored);
        }
        self.bytes += file.bytes().len() as u64;
        Ok(())
    }

    /// Bytes of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Changes with the files, which the model's digest only samples.
    pub(crate) fn stamp(&self) -> &str {
        &self.stamp
    }

    /// Lets go of the files' pages in memory: what was packed is not read again.
    pub(crate) fn release(&self) {
        self.tensors.values().for_each(|stored| stored.file.release());
    }

    /// Every tensor in the order of its name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.tensors.iter().map(|(name, stored)| (name.as_str(), stored))
    }

    /// The tensor `name`, which must have this shape.
    pub(crate) fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<Matrix, Error> {
        let (stored, element) = self.checked(name, &[rows, cols])?;
        let (file, range) = (Arc::clone(&stored.file), stored.range.clone());
        Ok(Matrix { file, range, element, whole: [rows, cols], rows: 0..rows, cols: 0..cols })
    }

    /// A vector of this length, as `f32`.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        let (stored, element) = self.checked(name, &[len])?;
        let (file, range) = (Arc::clone(&stored.file), stored.range.clone());
        let row = Matrix { file, range, element, whole: [1, len], rows: 0..1, cols: 0..len };
        let mut out = vec![0.0; len];
        row.view().copy_row(Isa::PORTABLE, 0, &mut out);
        Ok(out)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<(&Stored, Element), Error> {
        let refuse = |path: &Path, found: String| Error::Tensor {
            path: path.to_owned(),
            name: name.to_owned(),
            found,
            expected: format!("bf16, f16 or f32 {shape:?}"),
        };
        let stored = self.tensors.get(name).ok_or_else(|| refuse(&self.path, "missing".to_owned()))?;
        let element = element(stored.dtype).filter(|_| stored.shape == shape);
        let found = || format!("{} {:?}", format!("{:?}", stored.dtype).to_lowercase(), stored.shape);
        element.map(|element| (stored, element)).ok_or_else(|| refuse(&stored.path, found()))
    }
}

impl Stored {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.file.bytes()[self.range.clone()]
    }
}

impl Matrix {
    pub(crate) fn element(&self) -> Element {
        self.element
    }

    /// A part: a rank's outputs (`rows`) or inputs (`cols`).
    pub(crate) fn shard(&self, rows: Range<usize>, cols: Range<usize>) -> Self {
        Self { rows, cols, ..self.clone() }
    }

    /// Length of a row of the whole matrix that this is a part of.
    pub(crate) fn whole_cols(&self) -> usize {
        self.whole[1]
    }

    pub(crate) fn view(&self) -> WeightView<'_> {
        let bytes = &self.file.bytes()[self.range.clone()];
        let [rows, cols] = self.whole;
        let whole =
            WeightView::new(bytes, self.element, rows, cols).expect("safetensors checked bytes against the shape");
        whole.shard(self.rows.clone(), self.cols.clone())
    }
}

/// `bf16`, `f16` or `f32`.
pub(crate) fn element_name(element: Element) -> &'static str {
    match element {
        Element::Bf16 => "bf16",
        Element::F16 => "f16",
        Element::F32 => "f32",
    }
}

fn element(dtype: Dtype) -> Option<Element> {
    match dtype {
        Dtype::BF16 => Some(Element::Bf16),
        Dtype::F16 => Some(Element::F16),
        Dtype::F32 => Some(Element::F32),
        _ => None,
    }
}

/// The files that an index names; plain names only, so that an index cannot reach out of its directory.
fn shards(index: &Path) -> Result<BTreeSet<String>, Error> {
    let file = JsonFile::read(index)?;
    let map = file.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| file.unsupported("weight_map", "an object from tensor to file name"))?;
    let name = |value: &serde_json::Value| {
        let name = value.as_str().filter(|name| Path::new(name).file_name() == Some(name.as_ref()));
        name.map(str::to_owned).ok_or_else(|| Error::Unsupported {
            path: file.path().to_owned(),
            key: "weight_map".to_owned(),
            found: value.to_string(),
            supported: "names of files beside the index".to_owned(),
        })
    };
    map.values().map(name).collect()
}
