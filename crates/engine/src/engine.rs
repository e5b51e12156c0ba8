//! A loaded model and its KV memory.

use std::sync::Arc;
use std::time::Instant;

use kernels::{Isa, KvArena, Pool, SEGMENTS};
use kv::{BlockId, KvDtype, KvLayout, KvStore};
use parking_lot::Mutex;
use types::{Limits, ModelIdentity, SampledToken, TokenId};

use crate::cpu::{Cpu, CpuRank, PackPlace, PackedSoFar};
use crate::models::ModelConfig;
use crate::models::decoder::{Decoder, part};
use crate::plan::{Bounds, StepPlan};
use crate::ranks::AllReduce;
use crate::sample::{NotANumber, Sampler};
use crate::store::{RankedStore, arena_shape};
use crate::weights::{Weights, element_name};
use crate::{
    Batch, EngineConfig, Error, LoadProgress, LoadStage, MemoryPlan, PackedWeights, Quantization, SampleRequest,
    StepObserver, StepOutput, identity, memory,
};

/// A model with its KV memory, ready to step.
pub struct Engine {
    isa: Isa,
    identity: ModelIdentity,
    limits: Limits,
    memory: MemoryPlan,
    pub(crate) bounds: Bounds,
    /// One thread per rank; the caller of `step` is rank 0.
    pub(crate) rank_threads: Pool,
    /// Each locked by its own thread only.
    pub(crate) ranks: Vec<Mutex<Rank>>,
    pub(crate) all_reduce: Arc<AllReduce>,
    store: Arc<RankedStore>,
    inverse_frequencies: Vec<f32>,
    pub(crate) sampler: Sampler,
    /// Rank 0's compute threads, which also sample.
    pub(crate) pool: Arc<Pool>,
    /// `[sampled token][vocabulary]` of the current step.
    pub(crate) logits: Vec<f32>,
    /// Of the last step.
    plan: StepPlan,
}

/// What came of one request: no token where it leaves none.
type Draw = Result<Option<SampledToken>, NotANumber>;

pub(crate) struct Rank {
    pub(crate) backend: Cpu,
    pub(crate) decoder: Decoder<Cpu>,
}

impl Engine {
    /// Loads the model, telling `progress` how far it is.
    pub fn load(config: &EngineConfig, progress: &mut dyn FnMut(LoadProgress)) -> Result<Engine, Error> {
        Self::load_on(Isa::from_env()?, config, progress)
    }

    /// The same with the arithmetic of `isa`.
    pub fn load_on(isa: Isa, config: &EngineConfig, progress: &mut dyn FnMut(LoadProgress)) -> Result<Engine, Error> {
        let model = ModelConfig::load(&config.model_dir)?;
        check_options(config, &model)?;
        let weights = Weights::open(&config.model_dir)?;
        let total_bytes = weights.bytes();
        let mut report = |stage, done_bytes| progress(LoadProgress { stage, done_bytes, total_bytes });
        report(LoadStage::Weights, 0);
        let embedding = weights.matrix("model.embed_tokens.weight", model.vocab_size, model.hidden_size)?;
        let dtype = element_name(embedding.element());
        let kv_dtype = config.kv_dtype.unwrap_or(if dtype == "bf16" { KvDtype::Bf16 } else { KvDtype::F32 });
        let (layout, mut memory, max_model_len) = kv_layout(config, &model, kv_dtype, total_bytes)?;
        let dtype = config.quantization.map_or(dtype, Quantization::as_str);
        let identity = identity::identity(&model, &weights, dtype, kv_dtype, max_model_len);
        report(LoadStage::Memory, total_bytes);
        let (ranks, shared) = build_ranks(config, &model, &weights, &layout, isa)?;
        memory.packed = packed(config, &ranks);
        if memory.packed.is_some() {
            weights.release();
        }
        report(LoadStage::Done, total_bytes);
        Ok(Engine {
            isa,
            limits: limits(config, memory.blocks, isa),
            bounds: bounds(config, &model, &memory, max_model_len),
            identity,
            memory,
            rank_threads: Pool::new("rank", ranks.len()).map_err(Error::Start)?,
            ranks,
            all_reduce: shared.all_reduce,
            store: Arc::new(RankedStore::new(isa, layout, shared.arenas)),
            inverse_frequencies: model.rope.inverse_frequencies(model.head_dim),
            sampler: Sampler::new(isa, model.eos_token_ids, max_model_len),
            pool: shared.pool,
            logits: Vec::new(),
            plan: StepPlan::default(),
        })
    }

    /// What P and D must agree on.
    pub fn identity(&self) -> &ModelIdentity {
        &self.identity
    }

    pub fn limits(&self) -> Limits {
        self.limits.clone()
    }

    pub fn eos_token_ids(&self) -> &[TokenId] {
        self.sampler.eos_token_ids()
    }

    /// The KV of all ranks together; may be read and written from other threads while a step runs.
    pub fn kv_store(&self) -> Arc<dyn KvStore> {
        self.store.clone()
    }

    /// What instructions the arithmetic runs on, and why not on better ones.
    pub fn instructions(&self) -> String {
        self.isa.describe()
    }

    pub fn memory(&self) -> MemoryPlan {
        self.memory
    }

    /// Why packed weights could not be kept in `pack_cache`; without it they are this process's own.
    pub fn pack_cache_error(&self) -> Option<String> {
        self.ranks.iter().find_map(|rank| rank.lock().backend.packs().unsaved.clone())
    }

    /// Computes `batch`. An error of the batch means that nothing was computed. Panics if a rank's thread does; the engine is lost then.
    pub fn step(&mut self, batch: &Batch<'_>, observer: &dyn StepObserver) -> Result<StepOutput, Error> {
        let mut plan = std::mem::take(&mut self.plan);
        let output = self.step_by(&mut plan, batch, observer);
        self.plan = plan;
        output
    }

    fn step_by(
        &mut self,
        plan: &mut StepPlan,
        batch: &Batch<'_>,
        observer: &dyn StepObserver,
    ) -> Result<StepOutput, Error> {
        let start = Instant::now();
        plan.fill(batch, &self.bounds, &self.inverse_frequencies)?;
        let plan = &*plan;
        self.rank_threads.run(self.ranks.len(), |rank| {
            let _member = self.all_reduce.membership();
            let Rank { backend, decoder } = &mut *self.ranks[rank].lock();
            decoder.forward(backend, plan, observer);
        });
        self.gather_logits(plan.sampled.len());
        let rows = self.sample(batch)?;
        let probed = self.probe(batch, plan)?;
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(StepOutput { rows, probed, micros })
    }

    /// Copies a block in every layer and rank (copy-on-write). Ids outside the store are ignored.
    pub fn copy_block(&self, from: BlockId, to: BlockId) {
        self.store.copy_block(from, to);
    }

    /// Puts the ranks' parts of each row side by side; one rank's logits are taken as they are.
    pub(crate) fn gather_logits(&mut self, rows: usize) {
        let (ranks, vocab) = (self.ranks.len(), self.bounds.vocab_size);
        if let [only] = &mut self.ranks[..] {
            std::mem::swap(only.get_mut().backend.logits_mut(), &mut self.logits);
            return;
        }
        self.logits.resize(rows * vocab, 0.0);
        for (rank, state) in self.ranks.iter_mut().enumerate() {
            let columns = part(vocab, rank, ranks);
            let logits = state.get_mut().backend.logits_mut();
            for (row, part) in self.logits.chunks_exact_mut(vocab).zip(logits.chunks_exact(columns.len())) {
                row[columns.clone()].copy_from_slice(part);
            }
        }
    }

    fn sample(&self, batch: &Batch<'_>) -> Result<Vec<Vec<SampledToken>>, Error> {
        let sampling = batch.rows.iter().enumerate().filter(|(_, row)| !row.samples.is_empty());
        let rows = sampling.zip(self.logits.chunks_exact(self.bounds.vocab_size));
        let draws: Vec<(usize, &SampleRequest<'_>, &[f32])> = rows
            .flat_map(|((index, row), logits)| row.samples.iter().map(move |request| (index, request, logits)))
            .collect();
        let drawn: Vec<Mutex<Draw>> = draws.iter().map(|_| Mutex::new(Ok(None))).collect();
        self.pool.run(draws.len(), |draw| {
            let (_, request, logits) = draws[draw];
            *drawn[draw].lock() = self.sampler.sample(logits, request);
        });
        let mut rows = vec![Vec::new(); batch.rows.len()];
        for ((row, ..), token) in draws.iter().zip(drawn) {
            rows[*row].extend(token.into_inner().map_err(|NotANumber| Error::NotANumber { row: *row })?);
        }
        let incomplete = batch.rows.iter().zip(&mut rows).filter(|(row, drawn)| drawn.len() < row.samples.len());
        incomplete.for_each(|(_, drawn)| drawn.clear());
        Ok(rows)
    }
}

/// Where a rank's packed weights are shared, if they are.
fn pack_place(config: &EngineConfig, model: &ModelConfig, weights: &Weights, rank: usize) -> Option<PackPlace> {
    let (quantization, dir) = (config.quantization?, config.pack_cache.as_deref()?);
    let digest = identity::digest(model, weights);
    let ranks = config.tensor_parallel_size;
    Some(PackPlace::new(dir, &format!("{digest} {} {quantization} rank {rank} of {ranks}", weights.stamp())))
}

/// What packing came to over all ranks.
fn packed(config: &EngineConfig, ranks: &[Mutex<Rank>]) -> Option<PackedWeights> {
    let quantization = config.quantization?;
    let all =
        ranks.iter().map(|rank| rank.lock().backend.packs().so_far).fold(PackedSoFar::default(), PackedSoFar::and);
    Some(PackedWeights { quantization, bytes: all.bytes, error: all.error() })
}

fn check_options(config: &EngineConfig, model: &ModelConfig) -> Result<(), Error> {
    let refuse = |option, found: String, reason: String| Err(Error::Option { option, found, reason });
    let ranks = config.tensor_parallel_size;
    if !ranks.is_power_of_two() || ranks > SEGMENTS || !model.kv_heads.is_multiple_of(ranks) {
        let reason = format!(
            "it must be a power of two, at most {SEGMENTS}, that divides the model's {} kv heads",
            model.kv_heads
        );
        return refuse("tensor_parallel_size", ranks.to_string(), reason);
    }
    if !model.intermediate_size.is_multiple_of(ranks) {
        let reason = format!("it must divide the model's intermediate_size ({})", model.intermediate_size);
        return refuse("tensor_parallel_size", ranks.to_string(), reason);
    }
    if !(8..=128).contains(&config.block_size) {
        return refuse("block_size", config.block_size.to_string(), "supported: 8 to 128 tokens".to_owned());
    }
    for (option, value) in
        [("max_num_seqs", config.max_num_seqs), ("max_num_batched_tokens", config.max_num_batched_tokens)]
    {
        if value == 0 {
            return refuse(option, "0".to_owned(), "it must be at least 1".to_owned());
        }
    }
    Ok(())
}

fn limits(config: &EngineConfig, blocks_total: u32, isa: Isa) -> Limits {
    Limits {
        block_size: config.block_size,
        blocks_total,
        tensor_parallel_size: config.tensor_parallel_size as u32,
        max_num_seqs: config.max_num_seqs,
        max_num_batched_tokens: config.max_num_batched_tokens,
        instructions: isa.to_string(),
    }
}

fn bounds(config: &EngineConfig, model: &ModelConfig, memory: &MemoryPlan, max_model_len: u32) -> Bounds {
    Bounds {
        vocab_size: model.vocab_size,
        max_model_len: max_model_len as usize,
        block_size: memory.block_size as usize,
        blocks: memory.blocks,
        max_rows: config.max_num_seqs as usize,
        max_tokens: config.max_num_batched_tokens as usize,
    }
}

/// Layout, plan and the longest sequence.
fn kv_layout(
    config: &EngineConfig,
    model: &ModelConfig,
    dtype: KvDtype,
    weights_bytes: u64,
) -> Result<(KvLayout, MemoryPlan, u32), Error> {
    let mut layout = KvLayout {
        layers: model.layers as u32,
        kv_heads: model.kv_heads as u32,
        head_dim: model.head_dim as u32,
        dtype,
        block_size: config.block_size,
        blocks: 0,
    };
    let block_bytes = layout.block_bytes() as u64;
    let available = memory::available_bytes();
    let (plan, len) = memory::plan(config, model.max_position_embeddings, block_bytes, weights_bytes, available)?;
    layout.blocks = plan.blocks;
    Ok((layout, plan, len))
}

/// What ranks share, and what stays in reach beside them.
struct SharedParts {
    arenas: Vec<Arc<KvArena>>,
    all_reduce: Arc<AllReduce>,
    /// Rank 0's threads.
    pool: Arc<Pool>,
}

fn build_ranks(
    config: &EngineConfig,
    model: &ModelConfig,
    weights: &Weights,
    layout: &KvLayout,
    isa: Isa,
) -> Result<(Vec<Mutex<Rank>>, SharedParts), Error> {
    let count = config.tensor_parallel_size;
    let threads = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let pools = (0..count).map(|rank| Pool::new(&format!("math-{rank}"), threads / count).map(Arc::new));
    let pools: Vec<Arc<Pool>> = pools.collect::<Result<_, _>>().map_err(Error::Start)?;
    let shape = arena_shape(layout, count);
    let arenas = KvArena::of_ranks(shape, count).map_err(Error::Start)?;
    let all_reduce = Arc::new(AllReduce::new(count));
    let mut ranks = Vec::with_capacity(count);
    for (rank, (pool, arena)) in pools.iter().zip(&arenas).enumerate() {
        let build = || {
            let mut backend = Cpu::new(CpuRank {
                config: model,
                isa,
                pool: Arc::clone(pool),
                arena: Arc::clone(arena),
                all_reduce: Arc::clone(&all_reduce),
                rank,
                ranks: count,
                quantization: config.quantization,
                pack_place: pack_place(config, model, weights, rank),
            });
            let decoder = Decoder::load(model, weights, rank, count, &mut backend)?;
            Ok::<_, Error>(Rank { backend, decoder })
        };
        let mut built = build()?;
        if built.backend.packs().save() {
            // What other instances map, too, takes the place of what only this one has.
            built = build()?;
        }
        ranks.push(Mutex::new(built));
    }
    Ok((ranks, SharedParts { arenas, all_reduce, pool: Arc::clone(&pools[0]) }))
}
