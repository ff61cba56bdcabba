//! The block pool in single cases. (Over long random histories: `scheduler/histories.rs`.)

use super::*;
use crate::request::Tenant;

fn root() -> PrefixId {
    PrefixId::root(Tenant::ANONYMOUS)
}

fn tokens(n: u32) -> [u32; BLOCK_SIZE] {
    [n; BLOCK_SIZE]
}

/// A block of the pool with this content and no holder.
fn idle(pool: &mut BlockPool, parent: PrefixId, tokens: &[u32], keep: bool) -> BlockId {
    let block = pool.allocate().unwrap();
    match tokens.try_into() {
        Ok(tokens) => {
            let (block, _) = pool.publish(block, parent, &tokens, keep);
            pool.release(block);
        }
        Err(_) => pool.release_tail(block, parent, tokens),
    }
    pool.check(std::iter::empty());
    block
}

#[test]
fn a_published_prefix_is_found_again_block_by_block() {
    let mut pool = BlockPool::new(4);
    let first = pool.allocate().unwrap();
    let (first, prefix) = pool.publish(first, root(), &tokens(1), false);
    let second = pool.allocate().unwrap();
    let (second, end) = pool.publish(second, prefix, &tokens(2), false);
    let text = [tokens(1), tokens(2), tokens(3)].concat();
    let both = [(first, prefix), (second, end)];
    assert_eq!(pool.find_prefix(root(), &text), both);
    assert_eq!(pool.find_prefix(root(), &text[..40]), both);
    assert_eq!(pool.find_prefix(root(), &text[..31]), [(first, prefix)]);
    assert_eq!(pool.find_prefix(root(), &text[BLOCK_SIZE..]), []);
    let other = PrefixId::root(Tenant::of_key(b"another"));
    assert_eq!(pool.find_prefix(other, &text), []);
    assert_eq!(pool.find_tail(other, &text), None);
}

#[test]
fn the_block_with_the_longest_common_beginning_is_found() {
    let mut pool = BlockPool::new(4);
    let full = idle(&mut pool, root(), &(0..16).collect::<Vec<_>>(), false);
    let tail = idle(&mut pool, root(), &[0, 1, 2, 9, 9], false);
    let found = |pool: &BlockPool, tokens: &[u32]| {
        let tail = pool.find_tail(root(), tokens);
        tail.map(|tail| (tail.block, tail.tokens, tail.whole))
    };
    assert_eq!(found(&pool, &[0, 1, 2, 3, 4, 7]), Some((full, 5, false)));
    assert_eq!(found(&pool, &[0, 1, 2, 9, 8]), Some((tail, 4, false)));
    assert_eq!(found(&pool, &[0, 1, 2, 9, 9, 5]), Some((tail, 5, true)));
    assert_eq!(found(&pool, &[5]), None);
    assert_eq!(found(&pool, &[]), None);
    pool.take_over(tail);
    assert_eq!(found(&pool, &[0, 1, 2, 9, 9]), Some((full, 3, false)));
    pool.check([[tail].as_slice()].into_iter());
}

#[test]
fn a_tail_is_forgotten_where_another_block_says_more() {
    let mut pool = BlockPool::new(4);
    idle(&mut pool, root(), &[1, 2], false);
    let longer = idle(&mut pool, root(), &[1, 2, 3, 4], false);
    assert_eq!(pool.idle(), 1);
    idle(&mut pool, root(), &[1, 2, 3], false);
    idle(&mut pool, root(), &[1, 2, 3, 4], false);
    assert_eq!(pool.idle(), 1);
    assert_eq!(pool.find_tail(root(), &[1, 2, 3]).unwrap().block, longer);
    let full = [1, 2, 3, 4].into_iter().chain(5..17).collect::<Vec<_>>();
    let full = idle(&mut pool, root(), &full, false);
    assert_eq!(pool.idle(), 1);
    assert_eq!(pool.find_tail(root(), &[1, 2, 3]).unwrap().block, full);
}

#[test]
fn the_least_recently_used_idle_block_is_evicted_and_its_content_forgotten() {
    let mut pool = BlockPool::new(2);
    for n in [1, 2] {
        idle(&mut pool, root(), &tokens(n), false);
    }
    let (recent, _) = pool.find_prefix(root(), &tokens(1))[0];
    pool.hold(recent, false);
    pool.release(recent);
    pool.allocate().unwrap();
    assert!(pool.find_prefix(root(), &tokens(2)).is_empty());
    assert_eq!(pool.find_prefix(root(), &tokens(1)).len(), 1);
    pool.allocate().unwrap();
    assert_eq!(pool.allocate(), None);
}

#[test]
fn the_same_content_is_kept_once() {
    let mut pool = BlockPool::new(2);
    let (a, b) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    assert_eq!(pool.publish(a, root(), &tokens(1), false).0, a);
    assert_eq!(pool.publish(b, root(), &tokens(1), false).0, a);
    assert_eq!(pool.available(), 1);
    pool.check([[a, a].as_slice()].into_iter());
}

#[test]
fn what_is_worth_keeping_is_taken_out_before_its_block_is_used_again() {
    let mut pool = BlockPool::new(4);
    let kept = idle(&mut pool, root(), &tokens(1), true);
    let stored = idle(&mut pool, root(), &tokens(2), true);
    pool.mark_stored(stored);
    idle(&mut pool, root(), &tokens(3), false);
    idle(&mut pool, root(), &[4], false);
    let eviction = Eviction {
        place: Place::Block(kept),
        prefix: root().then(&tokens(1)),
    };
    assert_eq!(pool.unsaved().collect::<Vec<_>>(), [eviction]);
    assert_eq!(pool.take_moves(), []);
    while pool.allocate().is_some() {}
    assert_eq!(pool.take_moves(), [BlockMove::Evict(eviction)]);
    assert_eq!(pool.take_moves(), []);
}

#[test]
fn a_copy_is_of_what_the_block_held_even_if_it_is_the_last_one_there_is() {
    let mut pool = BlockPool::new(2);
    let from = idle(&mut pool, root(), &tokens(1), true);
    let to = pool.allocate_copy(from).unwrap();
    let copy = BlockMove::Copy(BlockCopy { from, to });
    assert_eq!(pool.take_moves(), [copy]);
    assert_eq!(pool.allocate_copy(from), Some(from));
    let eviction = Eviction {
        place: Place::Block(from),
        prefix: root().then(&tokens(1)),
    };
    assert_eq!(pool.take_moves(), [BlockMove::Evict(eviction)]);
    assert_eq!(pool.allocate_copy(to), None);
    pool.check([[from, to].as_slice()].into_iter());
}

#[test]
fn where_the_memory_is_in_doubt_nothing_of_it_is_used() {
    let mut pool = BlockPool::new(3);
    let held = pool.allocate().unwrap();
    let (held, _) = pool.publish(held, root(), &tokens(1), true);
    let tail = pool.allocate().unwrap();
    pool.release_tail(tail, root().then(&tokens(1)), &[1]);
    pool.forget_all();
    assert_eq!(pool.find_prefix(root(), &tokens(1)), []);
    assert_eq!((pool.idle(), pool.available()), (0, 2));
    pool.release(held);
    assert_eq!(pool.available(), 3);
}
