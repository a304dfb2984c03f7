#!/bin/sh
# The bundled model: EmbeddingGemma-300M, its vocabulary cut by English and code, 4 bits throughout.
#   mini.sh TEXT_FOLDER [MODEL] [OUT]       about 90 s on 2 cores, 2 GB of memory
# The same texts give the same file, byte for byte. They are question-answer pairs, encyclopedia
# introductions, dictionaries, software documentation, package descriptions and Python functions;
# they choose tokens, and nothing of them goes into the file.
set -e
data=$1
model=${2:-embeddinggemma-300m}
out=${3:-.}
cd "$data"
gemb cut "$model" -o "$out/mini" --vocab 32768 --vocab-from \
  boolq.jsonl.gz debian-desc.jsonl.gz enwiki-section.jsonl.gz foldoc.jsonl.gz jargon.jsonl.gz \
  libreoffice-help.jsonl.gz linux-doc.jsonl.gz medquad.jsonl.gz python-code.jsonl.gz \
  software-docs.jsonl.gz tldr.jsonl.gz wiki-intro.jsonl.gz wiki-title.jsonl.gz \
  wordnet-example.jsonl.gz wordnet-gloss.jsonl.gz
gemb export-gguf "$out/mini" -o "$out/mini.gguf" --outtype q4_0
