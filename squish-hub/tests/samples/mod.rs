//! Harmless files that look like dangerous ones, and controls. Nothing here is ever opened by what would run it.

// Each test uses a part of this.
#![allow(dead_code)]

use std::io::Write;

/// A file, its name in a repository, and what it stands for.
pub struct Sample {
    pub name: String,
    pub what: String,
    pub bytes: Vec<u8>,
}

fn sample(name: impl Into<String>, what: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Sample {
    Sample { name: name.into(), what: what.into(), bytes: bytes.into() }
}

/// `print("x")`, pickled by each protocol.
pub fn pickle(protocol: u8, module: &str, name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    if protocol >= 2 {
        out.extend([0x80, protocol]);
    }
    if protocol >= 4 {
        let mut body = Vec::new();
        for text in [module, name] {
            body.extend([0x8c, text.len() as u8]);
            body.extend(text.as_bytes());
            body.push(0x94);
        }
        body.extend(b"\x93\x94\x8c\x01x\x94\x85\x94R\x94.");
        out.push(0x95);
        out.extend((body.len() as u64).to_le_bytes());
        out.extend(body);
    } else {
        out.extend(format!("c{module}\n{name}\n").as_bytes());
        match protocol {
            0 => out.extend(b"p0\n(Vx\np1\ntp2\nRp3\n."),
            1 => out.extend(b"q\x00(X\x01\0\0\0xq\x01tq\x02Rq\x03."),
            _ => out.extend(b"q\x00X\x01\0\0\0xq\x01\x85q\x02Rq\x03."),
        }
    }
    out
}

/// A zip of stored or deflated members.
pub fn zip(members: &[(&str, &[u8])], deflate: bool, encrypted: bool) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, contents) in members {
        let data = if deflate {
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(contents).unwrap();
            encoder.finish().unwrap()
        } else {
            contents.to_vec()
        };
        let mut crc = flate2::Crc::new();
        crc.update(contents);
        let mut common = Vec::new();
        common.extend(20u16.to_le_bytes());
        common.extend(u16::from(encrypted).to_le_bytes());
        common.extend(if deflate { 8u16 } else { 0 }.to_le_bytes());
        common.extend([0; 4]);
        common.extend(crc.sum().to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((contents.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0; 2]);
        let at = out.len() as u32;
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(data);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let at = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([(members.len() as u16).to_le_bytes(); 2].concat());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(at.to_le_bytes());
    out.extend([0; 2]);
    out
}

pub fn tar(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, contents) in members {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
        header[156] = b'0';
        header[257..262].copy_from_slice(b"ustar");
        out.extend(header);
        out.extend(*contents);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn npy(descr: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,), }}\n");
    let mut out = b"\x93NUMPY\x01\0".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

/// One tensor of so many bytes.
pub fn safetensors(data: &[u8]) -> Vec<u8> {
    let header =
        format!("{{\"w\":{{\"dtype\":\"U8\",\"shape\":[{0}],\"data_offsets\":[0,{0}]}}}}", data.len());
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

fn hdf5(config: &str) -> Vec<u8> {
    [b"\x89HDF\r\n\x1a\n\0\0\0\0".as_slice(), config.as_bytes()].concat()
}

/// What must be refused.
pub fn unsafe_samples() -> Vec<Sample> {
    let mut all = Vec::new();
    let evil = pickle(2, "posix", "system");
    for protocol in 0..=5 {
        let bytes = pickle(protocol, "posix", "system");
        all.push(sample("model.pkl", format!("pickle, protocol {protocol}"), bytes.clone()));
        all.push(sample(
            "pytorch_model.bin",
            format!("torch's old format, protocol {protocol}"),
            bytes.clone(),
        ));
        all.push(sample("README.md", format!("pickle named as text, protocol {protocol}"), bytes.clone()));
        all.push(sample("config.json", format!("pickle named as JSON, protocol {protocol}"), bytes.clone()));
        all.push(sample(
            "model.safetensors",
            format!("pickle named as weights, protocol {protocol}"),
            bytes.clone(),
        ));
        all.push(sample("weights", format!("pickle without extension, protocol {protocol}"), bytes));
    }
    for global in
        ["builtins.eval", "builtins.exec", "nt.system", "subprocess.Popen", "runpy._run_code", "torch.load"]
    {
        let (module, name) = global.split_once('.').unwrap();
        all.push(sample("model.pt", format!("pickle that imports {global}"), pickle(4, module, name)));
    }
    all.push(sample("model.pkl", "pickle by INST", b"(S'x'\niposix\nsystem\n.".to_vec()));
    all.push(sample("model.pkl", "pickle by OBJ", b"(cposix\nsystem\nS'x'\no.".to_vec()));
    all.push(sample("model.pkl", "pickle of plain data, protocol 4", b"\x80\x04]\x94(K\x01K\x02e.".to_vec()));
    all.push(sample("model.pkl", "pickle by the extension registry", b"\x80\x02\x82\x01)R.".to_vec()));
    let memo =
        b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x8c\x01a\x94h\x00h\x01\x93\x8c\x01x\x85R.".to_vec();
    all.push(sample("model.pkl", "pickle whose names come from its memo", memo));
    let truncated = |n: usize| evil[..evil.len() - n].to_vec();
    all.push(sample("model.pkl", "pickle, STOP cut off", truncated(1)));
    all.push(sample("model.pkl", "pickle, cut after the import", truncated(16)));
    all.push(sample("model.pth", "pickle, padded behind", [evil.clone(), vec![0; 4096]].concat()));
    all.push(sample("model.pth", "pickle, padded before with zeros", [vec![0; 4096], evil.clone()].concat()));
    all.push(sample(
        "model.ckpt",
        "pickle, padded before with line feeds",
        [vec![b'\n'; 64], evil.clone()].concat(),
    ));
    all.push(sample(
        "data.txt",
        "text with a pickle behind zeros",
        [b"hello\0".to_vec(), evil.clone()].concat(),
    ));
    all.push(sample("tokenizer.json", "JSON with a pickle behind", [b"{}".to_vec(), evil.clone()].concat()));
    all.push(sample(
        "model.safetensors",
        "weights with a pickle behind",
        [safetensors(&[1; 64]), evil.clone()].concat(),
    ));
    let member: &[(&str, &[u8])] = &[("archive/data.pkl", &evil), ("archive/data/0", &[0; 16])];
    all.push(sample("pytorch_model.bin", "torch zip", zip(member, false, false)));
    all.push(sample("pytorch_model.pt", "torch zip, deflated", zip(member, true, false)));
    all.push(sample("model.safetensors", "torch zip named as weights", zip(member, false, false)));
    all.push(sample("vocab.txt", "torch zip named as text", zip(member, false, false)));
    all.push(sample(
        "model.zip",
        "zip in which the pickle is named .txt",
        zip(&[("a.txt", &evil)], false, false),
    ));
    let inner = zip(member, true, false);
    all.push(sample("model.zip", "zip in zip", zip(&[("inner.zip", &inner)], true, false)));
    let deep = (0..6).fold(inner.clone(), |bytes, _| zip(&[("inner.zip", &bytes)], false, false));
    all.push(sample("model.zip", "zips nested seven deep", deep));
    all.push(sample("model.zip", "encrypted zip", zip(member, false, true)));
    let whole = zip(member, false, false);
    all.push(sample("model.pt", "torch zip, directory cut off", whole[..whole.len() - 40].to_vec()));
    all.push(sample("model.pt", "torch zip with bytes before it", [vec![7; 999], whole.clone()].concat()));
    all.push(sample("model.safetensors", "zip within a tensor's bytes, at the end", safetensors(&whole)));
    all.push(sample(
        "model.mar",
        "zip with a pickle named as a program",
        zip(&[("run", &evil)], true, false),
    ));
    all.push(sample("model.tar", "tar with a pickle", tar(&[("data.pkl", &evil)])));
    all.push(sample("pytorch_model.bin", "torch's oldest format, a tar", tar(&[("pickle", &evil)])));
    all.push(sample("model.nemo", "tar with a torch zip", tar(&[("model.ckpt", &whole)])));
    all.push(sample("model.tar", "tar, truncated", tar(&[("notes.txt", &[b'a'; 2000])])[..1500].to_vec()));
    all.push(sample("model.joblib", "joblib, zlib", zlib(&evil)));
    all.push(sample("model.joblib", "joblib, gzip", gzip(&evil)));
    all.push(sample("model.pkl.gz", "gzip", gzip(&evil)));
    all.push(sample("model.tar.gz", "tar.gz with a pickle", gzip(&tar(&[("data.pkl", &evil)]))));
    all.push(sample("model.joblib", "joblib, bzip2", b"BZh91AY&SY".to_vec()));
    all.push(sample("model.joblib", "joblib, xz", b"\xfd7zXZ\0\0\x04".to_vec()));
    all.push(sample("model.joblib", "joblib, lz4", b"\x04\x22\x4d\x18xx".to_vec()));
    all.push(sample("embeddings.npy", "npy of objects", npy("|O", &evil)));
    all.push(sample("embeddings.npy", "npy with a damaged header", b"\x93NUMPY\x01\0\x02\0{}".to_vec()));
    all.push(sample(
        "embeddings.npz",
        "npz with an array of objects",
        zip(&[("a.npy", &npy("|O", &evil))], true, false),
    ));
    all.push(sample("model.h5", "Keras HDF5 with a Lambda layer", hdf5("{\"class_name\": \"Lambda\"}")));
    let lambda: &[(&str, &[u8])] = &[("config.json", b"{\"class_name\": \"Lambda\"}")];
    all.push(sample("model.keras", "Keras zip with a Lambda layer", zip(lambda, true, false)));
    all.push(sample("libmodel.so", "ELF program", b"\x7fELF\x02\x01\x01\0".to_vec()));
    all.push(sample(
        "model.safetensors",
        "ELF program named as weights",
        b"\x7fELF\x02\x01\x01\0\0\0\0\0".to_vec(),
    ));
    all.push(sample("setup.exe", "Windows program", b"MZ\x90\0".to_vec()));
    all.push(sample("model.safetensors", "weights, truncated", safetensors(&[1; 64])[..90].to_vec()));
    all.push(sample("model.safetensors", "weights, header truncated", safetensors(&[1; 64])[..20].to_vec()));
    all.push(sample("model.safetensors", "an empty file", Vec::new()));
    all.push(sample("model.safetensors", "a header of 2^60 bytes", (1u64 << 60).to_le_bytes().to_vec()));
    all.push(sample("model.safetensors", "an error page", b"<html>not found</html>".to_vec()));
    all.push(sample("config.json", "JSON nested 100 deep", [vec![b'['; 100], vec![b']'; 100]].concat()));
    all.push(sample("config.json", "JSON, truncated", b"{\"a\": ".to_vec()));
    all.push(sample("merges.txt", "bytes that are no text", vec![0xff, 0xfe, 0, 1]));
    all.push(sample("model.bin", "unknown contents under a pickle's name", vec![3; 100]));
    all.push(sample("model.bin", "GGUF under a pickle's name", b"GGUF\x03\0\0\0".to_vec()));
    all
}

/// What must pass.
pub fn benign_samples() -> Vec<Sample> {
    let text = |name: &str, what: &str, text: &str| sample(name, what, text.as_bytes());
    let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR".to_vec();
    let notes: &[(&str, &[u8])] = &[("notes.txt", b"hello"), ("a/", b"")];
    vec![
        sample("model.safetensors", "weights", safetensors(&[1; 64])),
        sample(
            "model.safetensors",
            "weights that hold a pickle's bytes",
            safetensors(&pickle(2, "posix", "system")),
        ),
        sample(
            "model.safetensors",
            "weights that hold PK",
            safetensors(b"PK\x03\x04PK\x05\x06aaaaaaaaaaaaaaaaaaaa"),
        ),
        text(
            "config.json",
            "configuration",
            "{\"architectures\": [\"Qwen2ForCausalLM\"], \"hidden_size\": 896}\n",
        ),
        text("tokenizer.json", "tokenizer", "{\"model\": {\"vocab\": {\"\\u0080\": 1, \"[[[[\": 2}}}"),
        text("model.safetensors.index.json", "index", "{\"weight_map\": {}}"),
        text("generation_config.json", "a JSON number", "0"),
        text("chat_template.jinja", "chat template", "{% for m in messages %}{{ m.content }}{% endfor %}"),
        text("README.md", "model card", "---\nlicense: apache-2.0\n---\n# Model\n\ncos\nsystem\n"),
        text("README.md", "text that begins as a GLOBAL does", "can\nbe\nread. (So.)\n"),
        text("README.md", "text that begins nearly as an INST does", "in short\nread\n. Rest\n"),
        text("notes.txt", "a full stop", "."),
        text("notes.txt", "an empty line", "\n"),
        text("LICENSE", "licence without extension", "Apache License\nVersion 2.0, January 2004\n"),
        text("USE_POLICY", "text without extension", "(a) Nothing.\n"),
        text(".gitattributes", "git attributes", "*.safetensors filter=lfs diff=lfs merge=lfs -text\n"),
        text("merges.txt", "merges", "#version: 0.2\n\u{120} \u{120}\n"),
        text("modeling.py", "Python source, never run", "#!/usr/bin/env python\nimport os\n"),
        sample("logo.png", "a picture", png),
        sample("photo.jpg", "a picture", b"\xff\xd8\xff\xe0".to_vec()),
        sample("model.gguf", "GGUF, ignored", b"GGUF\x03\0\0\0".to_vec()),
        sample(
            "tokenizer.model",
            "sentencepiece, ignored",
            b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02".to_vec(),
        ),
        sample("model.onnx", "ONNX, ignored", b"\x08\x08\x12\x07pytorch\x1a".to_vec()),
        sample("flax_model.msgpack", "msgpack, ignored", b"\x81\xa6params\x80".to_vec()),
        sample("tf_model.h5", "HDF5 without Lambda", hdf5("{\"class_name\": \"Dense\"}")),
        sample("stats.npy", "npy of numbers", npy("<f4", &[0; 4])),
        sample("stats.npz", "npz of numbers", zip(&[("a.npy", &npy("<f4", &[0; 4]))], true, false)),
        sample("notes.zip", "zip of text", zip(notes, true, false)),
        sample("notes.tar.gz", "tar.gz of text", gzip(&tar(&[("notes.txt", b"hello")]))),
        sample("empty.zip", "an empty zip", zip(&[], false, false)),
    ]
}
