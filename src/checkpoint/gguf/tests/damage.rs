//! Damaged and hostile files are refused, without a panic and without a large allocation.

use super::*;

#[test]
fn damaged_and_hostile_files_are_refused_with_the_place_and_the_limit() {
    let tensor = |dimensions: &[u64], kind, offset| {
        let file = Writer::default().tensor("t", dimensions, kind, offset);
        file.data(64).error()
    };
    let nested = |depth: usize| {
        let mut value = Vec::new();
        for _ in 0..depth {
            value.extend(9_u32.to_le_bytes());
            value.extend(1_u64.to_le_bytes());
        }
        value.extend(4_u32.to_le_bytes());
        value.extend(0_u64.to_le_bytes());
        Writer::default().key("k", 9, &value)
    };
    assert!(read(nested(3).bytes()).is_ok());
    for (error, words) in [
        (nested(4).error(), ["key `k`", "more than 4 deep"]),
        (nested(90).error(), ["key `k`", "more than 4 deep"]),
        (
            Writer::default()
                .key("k", 8, &u64::MAX.to_le_bytes())
                .error(),
            ["string of 18446744073709551615 bytes", "at most"],
        ),
        (
            Writer::default().array("k", 0, 1 << 20, &[]).error(),
            ["1048576 elements", "room for"],
        ),
        (
            Writer::default().array("k", 4, u64::MAX, &[]).error(),
            ["18446744073709551615 elements", "at most"],
        ),
        (
            Writer::default().key("k", 13, &[]).error(),
            ["type 13", "0 to 12"],
        ),
        (
            Writer::default().u32("k", 1).u32("k", 2).error(),
            ["key `k`", "twice"],
        ),
        (
            Writer::default().u32("general.alignment", 3).error(),
            ["`general.alignment` is 3", "power of two"],
        ),
        (
            Writer::default().u32("general.alignment", 0).error(),
            ["`general.alignment` is 0", "power of two"],
        ),
        (tensor(&[], 0, 0), ["tensor `t`", "0 dimensions"]),
        (tensor(&[1; 5], 0, 0), ["tensor `t`", "5 dimensions"]),
        (tensor(&[0], 0, 0), ["dimensions [0]", "expected 1 to"]),
        (
            tensor(&[1 << 33, 1 << 33], 0, 0),
            ["8589934592", "expected"],
        ),
        (
            tensor(&[33], 8, 0),
            ["rows of 33 values of type Q8_0", "32"],
        ),
        (tensor(&[4], 0, 1), ["offset 1", "alignment (32)"]),
        (tensor(&[17], 0, 0), ["68 bytes at offset 0", "ends at 128"]),
        (tensor(&[4], 0, 1 << 63), ["tensor `t`", "within the file"]),
        (tensor(&[4], 0, !31), ["tensor `t`", "within the file"]),
        (
            Writer::default()
                .tensor("t", &[4], 0, 0)
                .tensor("t", &[4], 0, 0)
                .data(64)
                .error(),
            ["tensor `t`", "twice"],
        ),
    ] {
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{words:?}: {error}"
        );
        assert!(error.starts_with("test.gguf: "), "{error}");
    }
    for (bytes, word) in [
        (b"".to_vec(), "not a GGUF file"),
        (
            b"version https://git-lfs.github.com/spec/v1".to_vec(),
            "Git LFS pointer",
        ),
        (b"GGUF".to_vec(), "file ends at 4"),
        (b"GGUF\x01\0\0\0".to_vec(), "version 1"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        (
            [b"GGUF\x03\0\0\0".as_slice(), &[0xff; 16]].concat(),
            "at most",
        ),
    ] {
        let error = read(bytes).err().expect("it is refused").to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    // Version 2 has the same layout; a type that can't be read is refused only if it is used.
    let mut old = Writer::default().tensor("t", &[4], 10, 7).data(64).bytes();
    old[4] = 2;
    let gguf = read(old).unwrap();
    assert_eq!(gguf.tensor("t").unwrap().dtype, Err("Q2_K".to_owned()));
}

#[test]
fn no_truncated_or_changed_header_is_a_panic() {
    let file = Writer::default()
        .string("general.architecture", "gemma3")
        .u32("gemma3.context_length", 64)
        .u32("gemma3.embedding_length", 32)
        .u32("gemma3.block_count", 1)
        .u32("gemma3.feed_forward_length", 64)
        .u32("gemma3.attention.head_count", 2)
        .f32("gemma3.attention.layer_norm_rms_epsilon", 1e-6)
        .strings("tokenizer.ggml.tokens", &["a", "<eos>"])
        .array("tokenizer.ggml.scores", 6, 2, &[0; 8])
        .array("tokenizer.ggml.token_type", 5, 2, &[3, 0, 0, 0, 1, 0, 0, 0])
        .string("tokenizer.ggml.model", "llama")
        .u32("tokenizer.ggml.eos_token_id", 1)
        .array("k", 9, 1, &[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
        .tensor("token_embd.weight", &[32, 2], 8, 0)
        .tensor("output_norm.weight", &[32], 0, 96)
        .data(96 + 128);
    let whole = file.bytes();
    let use_all = |bytes: &[u8]| {
        let header = Header::read("f", bytes);
        let Ok(header) = header else { return };
        // What the header holds is bounded by the file.
        let names = header.keys.keys().map(String::len).sum::<usize>();
        assert!(names <= bytes.len());
        for (_, tensor) in &header.tensors {
            assert!(bytes.get(tensor.range.clone()).is_some());
        }
        let gguf = read(bytes.to_vec()).unwrap();
        let _ = gguf.vocabulary();
        let _ = gguf.generation_config();
        let _ = gguf.chat_template();
        if let Ok(config) = gguf.config()
            && config.layers() <= 16
            && let Ok(checkpoint) = Checkpoint::from_gguf(gguf, &config)
        {
            assert!(checkpoint.validate(&config).is_err());
        }
    };
    use_all(&whole);
    assert!(read(whole.clone()).unwrap().config().is_ok());
    for length in 0..whole.len() {
        use_all(&whole[..length]);
    }
    let header = whole.len() - file.data.len();
    for at in 0..header {
        for change in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
            let mut changed = whole.clone();
            changed[at] ^= change;
            use_all(&changed);
        }
    }
}
