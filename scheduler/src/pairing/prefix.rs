//! Which prompts which instance has probably cached: the blocks it was sent, one index for all instances.
//!
//! An approximation that only routing reads; being wrong costs time, never text. Whoever has a block has those before it: an instance
//! forgets whole ends of prompts. So blocks further along a prompt have fewer holders, and those with most of it are found in a few looks.

use std::collections::{HashMap, VecDeque, hash_map};
use std::num::NonZeroU64;

use foldhash::fast::RandomState;
use kv::BlockHash;
use rand::Rng;
use smallvec::SmallVec;
use types::Role;

use super::{Slot, side};

/// Tokens per hash here. Instances choose their own block sizes; this is only the grain of the comparison: a finer one makes long prompts
/// dear to remember, and computing fewer tokens than this again costs next to nothing.
pub const PREFIX_BLOCK: usize = 64;

/// Blocks remembered per instance: a million tokens.
const BLOCKS_MAX: usize = 16_384;
/// Blocks remembered of all instances together, each shares it alike: with more than 512 instances. By the size of an entry 0.5 GB where a
/// prefill and a decode instance have each block, twice that where one has it.
const BLOCKS_TOTAL: usize = 8 << 20;
/// Levels of a prompt that are told apart; who has less than those who have most is taken for having none of it.
const LEVELS_MAX: usize = 32;
/// Of so many holders of a block at most it is asked whether they would do.
const HOLDERS_ASKED: usize = 8;

#[derive(Default)]
pub(super) struct PrefixIndex {
    blocks: HashMap<Name, Block, RandomState>,
    /// By slot.
    instances: Vec<Recent>,
}

/// Half of a [`BlockHash`], as one number: so an entry fits a line of memory, and two blocks of one name only cost time.
type Name = NonZeroU64;

#[derive(Default)]
struct Block {
    /// The one before it in its prompt.
    parent: Option<Name>,
    /// By [`side`], sorted by slot.
    holders: [Holders; 2],
}

type Holders = SmallVec<[Holder; 2]>;

#[derive(Clone, Copy)]
struct Holder {
    slot: u32,
    /// Number of the last prompt of this instance that has the block.
    prompt: u32,
}

/// What one instance was sent.
struct Recent {
    role: Role,
    /// Last blocks of its latest prompts. They are numbered; the next one's number is `next`.
    prompts: VecDeque<Name>,
    next: u32,
    blocks: usize,
    /// Blocks that its memory has room for.
    room: usize,
}

impl PrefixIndex {
    /// A new process is there: nothing is known of its cache, which holds at most `tokens`.
    pub(super) fn joined(&mut self, slot: Slot, role: Role, tokens: u32) {
        while self.instances.len() <= slot.0 {
            self.instances.push(Recent::new(role, 0));
        }
        self.shrink(slot, 0);
        self.instances[slot.0] = Recent::new(role, tokens as usize / PREFIX_BLOCK);
    }

    /// The instance is about to compute or receive `chain`.
    pub(super) fn insert(&mut self, slot: Slot, chain: &[BlockHash]) {
        let share = BLOCKS_TOTAL / self.instances.len().max(1);
        let Some(instance) = self.instances.get_mut(slot.0) else { return };
        let most = instance.room.min(share).min(BLOCKS_MAX);
        let chain = &chain[..chain.len().min(most)];
        let holder = Holder { slot: slot.0 as u32, prompt: instance.next };
        let mut parent = None;
        for name in chain.iter().map(name) {
            let block = self.blocks.entry(name).or_insert_with(|| Block { parent, ..Block::default() });
            instance.blocks += usize::from(block.held_by(instance.role, holder));
            parent = Some(name);
        }
        let Some(last) = parent else { return };
        instance.prompts.push_back(last);
        instance.next = instance.next.wrapping_add(1);
        self.shrink(slot, most);
    }

    /// Forgets the instance's oldest prompts until it is believed to have `most` blocks, and is remembered by as many prompts, at most.
    fn shrink(&mut self, slot: Slot, most: usize) {
        let Some(instance) = self.instances.get_mut(slot.0) else { return };
        while instance.blocks.max(instance.prompts.len()) > most
            && let Some(last) = instance.prompts.pop_front()
        {
            let prompt = instance.next.wrapping_sub(instance.prompts.len() as u32 + 1);
            let mut block = Some(last);
            // From its end to where it shares blocks with a later prompt.
            while let Some(name) = block
                && let hash_map::Entry::Occupied(mut entry) = self.blocks.entry(name)
                && entry.get_mut().dropped_by(instance.role, Holder { slot: slot.0 as u32, prompt })
            {
                instance.blocks -= 1;
                block = entry.get().parent;
                if entry.get().holders.iter().all(SmallVec::is_empty) {
                    entry.remove();
                }
            }
        }
    }

    /// Leading blocks of `chain` that this instance probably has.
    pub(super) fn matched(&self, slot: Slot, chain: &[BlockHash]) -> usize {
        let Some(instance) = self.instances.get(slot.0) else { return 0 };
        leading(chain, None, |hash| place(self.holders(instance.role, hash), slot.0 as u32).is_ok())
    }

    /// Which instances of a role probably have how much of `chain`. `guess` is how much whoever has most of it may have.
    pub(super) fn known(&self, role: Role, mut chain: &[BlockHash], mut guess: Option<usize>) -> Known<'_> {
        let mut levels = SmallVec::new();
        let mut holders: &[Holder] = &[];
        while levels.len() < LEVELS_MAX {
            chain = &chain[..leading(chain, guess.take(), |hash| self.holders(role, hash).len() > holders.len())];
            let Some((deepest, before)) = chain.split_last() else { break };
            holders = self.holders(role, deepest);
            levels.push(Level { blocks: chain.len(), holders });
            chain = before;
        }
        Known(levels)
    }

    fn holders(&self, role: Role, hash: &BlockHash) -> &[Holder] {
        self.blocks.get(&name(hash)).map_or(&[], |block| &block.holders[side(role)])
    }
}

/// Who has how much of one prompt: by how far it is known, the furthest first. Each level has the holders of those before it, and more.
pub(super) struct Known<'a>(SmallVec<[Level<'a>; 4]>);

struct Level<'a> {
    blocks: usize,
    holders: &'a [Holder],
}

impl Known<'_> {
    /// Leading blocks that anybody has.
    pub(super) fn deepest(&self) -> usize {
        self.0.first().map_or(0, |level| level.blocks)
    }

    /// Leading blocks that this instance has.
    pub(super) fn matched(&self, slot: Slot) -> usize {
        let level = self.0.iter().find(|level| place(level.holders, slot.0 as u32).is_ok());
        level.map_or(0, |level| level.blocks)
    }

    /// Up to `wanted` instances that have most of it and would do: of many that have equally much, any.
    pub(super) fn best(
        &self,
        wanted: usize,
        would_do: impl Fn(Slot) -> bool,
        rng: &mut impl Rng,
    ) -> SmallVec<[Slot; 8]> {
        let mut found = SmallVec::new();
        for Level { holders, .. } in &self.0 {
            let start = rng.random_range(0..holders.len());
            for holder in holders.iter().cycle().skip(start).take(holders.len().min(HOLDERS_ASKED)) {
                let slot = Slot(holder.slot as usize);
                if found.len() < wanted && !found.contains(&slot) && would_do(slot) {
                    found.push(slot);
                }
            }
            if found.len() == wanted || holders.len() > HOLDERS_ASKED {
                break;
            }
        }
        found
    }
}

impl Recent {
    fn new(role: Role, room: usize) -> Self {
        Self { role, prompts: VecDeque::new(), next: 0, blocks: 0, room }
    }
}

impl Block {
    /// Whether the instance did not have it before.
    fn held_by(&mut self, role: Role, holder: Holder) -> bool {
        let holders = &mut self.holders[side(role)];
        let place = place(holders, holder.slot);
        match place {
            Ok(place) => holders[place] = holder,
            Err(place) => holders.insert(place, holder),
        }
        place.is_err()
    }

    /// Whether the instance had it by this very prompt, and so has it no more.
    fn dropped_by(&mut self, role: Role, holder: Holder) -> bool {
        let holders = &mut self.holders[side(role)];
        let place = place(holders, holder.slot).ok().filter(|place| holders[*place].prompt == holder.prompt);
        place.map(|place| holders.remove(place)).is_some()
    }
}

/// How many blocks at the beginning `has` is true of, if it is true of none after them. Asks about two at a time, first
/// about those around the guess: each answer comes from far away in memory, and those come together.
fn leading(chain: &[BlockHash], guess: Option<usize>, has: impl Fn(&BlockHash) -> bool) -> usize {
    let (mut least, mut most) = (0, chain.len());
    let mut guess = guess.map(|guess| (guess.clamp(1, most.max(1)), (guess + 1).clamp(1, most.max(1))));
    while least < most {
        let third = (most - least).div_ceil(3);
        let (few, many) = guess.take().unwrap_or((least + third, most.min(least + 2 * third)));
        (least, most) = match (has(&chain[few - 1]), has(&chain[many - 1])) {
            (false, _) => (least, few - 1),
            (true, false) => (few, many - 1),
            (true, true) => (many, most),
        };
    }
    least
}

fn name(hash: &BlockHash) -> Name {
    let half = hash.0.first_chunk().map_or(0, |half| u64::from_le_bytes(*half));
    Name::new(half).unwrap_or(Name::MAX)
}

/// Where the instance stands among the holders, or should.
fn place(holders: &[Holder], slot: u32) -> Result<usize, usize> {
    holders.binary_search_by_key(&slot, |holder| holder.slot)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const ROOM: usize = 40;

    fn index(roles: &[Role]) -> PrefixIndex {
        let mut index = PrefixIndex::default();
        for (slot, role) in roles.iter().enumerate() {
            index.joined(Slot(slot), *role, (ROOM * PREFIX_BLOCK) as u32);
        }
        index
    }

    fn chain(ids: impl IntoIterator<Item = u16>) -> Vec<BlockHash> {
        ids.into_iter().map(|id| BlockHash(u128::from(id).to_le_bytes())).collect()
    }

    /// Prompts of a tree: `branch` says where each leaves the trunk that all share, if it is longer than that.
    fn prompt(branch: u16, number: u16, len: u16) -> Vec<BlockHash> {
        let own = 1_000 + (branch * 12 + number) * 60;
        chain((0..len).map(|block| if block < branch { block } else { own + block }))
    }

    #[test]
    fn matches_leading_blocks_only() {
        let mut index = index(&[Role::Prefill]);
        index.insert(Slot(0), &chain([1, 2, 3]));
        for (asked, expected) in [(vec![1, 2, 3, 4], 3), (vec![1, 2, 9], 2), (vec![9], 0), (vec![], 0)] {
            assert_eq!(index.matched(Slot(0), &chain(asked.clone())), expected, "{asked:?}");
        }
        assert_eq!(index.matched(Slot(7), &chain([1])), 0, "nobody");
    }

    #[test]
    fn those_with_most_of_it_come_first_and_only_who_would_do() {
        let mut index = index(&[Role::Prefill; 12]);
        (0..12).for_each(|slot| index.insert(Slot(slot), &chain([1, 2])));
        (3..6).for_each(|slot| index.insert(Slot(slot), &chain([1, 2, 3])));
        index.insert(Slot(5), &chain([1, 2, 3, 4]));
        let asked = chain(1..10);
        let known = index.known(Role::Prefill, &asked, None);
        let best =
            |wanted, would_do: &dyn Fn(Slot) -> bool| known.best(wanted, would_do, &mut StdRng::seed_from_u64(1));
        assert_eq!(best(1, &|_| true)[..], [Slot(5)]);
        let mut three = best(3, &|_| true).to_vec();
        three.sort();
        assert_eq!(three, [Slot(3), Slot(4), Slot(5)]);
        assert_eq!(best(2, &|slot| slot == Slot(4))[..], [Slot(4)]);
        assert_eq!(best(5, &|_| true).iter().collect::<HashSet<_>>().len(), 5);
        assert_eq!(known.0.iter().map(|level| level.blocks).collect::<Vec<_>>(), [4, 3, 2]);
        assert!(index.known(Role::Decode, &asked, None).0.is_empty());
    }

    #[test]
    fn a_new_process_has_nothing_and_nothing_is_left_behind() {
        let mut index = index(&[Role::Prefill, Role::Decode]);
        for number in 0..12 {
            index.insert(Slot(usize::from(number % 2)), &prompt(7, number, 20));
        }
        assert!(index.blocks.len() > ROOM);
        (0..2).for_each(|slot| index.joined(Slot(slot), Role::Decode, 16));
        assert!(index.blocks.is_empty());
    }

    /// What the index should know of one instance: its latest prompts, as many as there is room for.
    #[derive(Default)]
    struct Plain(VecDeque<Vec<BlockHash>>);

    impl Plain {
        fn insert(&mut self, chain: &[BlockHash]) {
            self.0.push_back(chain[..chain.len().min(ROOM)].to_vec());
            while self.blocks().len().max(self.0.len()) > ROOM {
                self.0.pop_front();
            }
        }

        fn blocks(&self) -> HashSet<BlockHash> {
            self.0.iter().flatten().copied().collect()
        }

        fn matched(&self, chain: &[BlockHash]) -> usize {
            let blocks = self.blocks();
            chain.iter().take_while(|hash| blocks.contains(hash)).count()
        }
    }

    proptest! {
        #[test]
        fn it_knows_what_a_plain_list_of_prompts_knows(
            prompts in prop::collection::vec((0usize..5, 0u16..30, 0u16..12, 1u16..60, 0usize..70), 1..120),
        ) {
            let roles = [Role::Prefill, Role::Decode, Role::Prefill, Role::Decode, Role::Prefill];
            let mut index = index(&roles);
            let mut plain: Vec<Plain> = roles.iter().map(|_| Plain::default()).collect();
            for (slot, branch, number, len, guess) in prompts {
                let asked = prompt(branch, number, len);
                index.insert(Slot(slot), &asked);
                plain[slot].insert(&asked);
                prop_assert_eq!(index.instances[slot].blocks, plain[slot].blocks().len());
                let matched: Vec<usize> = plain.iter().map(|plain| plain.matched(&asked)).collect();
                for (slot, matched) in matched.iter().enumerate() {
                    prop_assert_eq!(index.matched(Slot(slot), &asked), *matched);
                }
                for guess in [None, Some(guess)] {
                    let known = roles.map(|role| index.known(role, &asked, guess));
                    for (slot, known) in known.iter().enumerate() {
                        prop_assert_eq!(known.matched(Slot(slot)), matched[slot]);
                    }
                }
            }
            let all: HashSet<BlockHash> = plain.iter().flat_map(Plain::blocks).collect();
            prop_assert_eq!(index.blocks.len(), all.len());
        }
    }
}
