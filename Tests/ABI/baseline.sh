#!/usr/bin/env bash
# Whether a library keeps to the instructions of x86-64 itself: SSE2 and older. It needs no symbols.
#
# usage: baseline.sh LIBRARY
#
# CThalweg/bf16.c is compiled for AVX-512 whatever the variant is, and asked for after a look at the processor: what uses the
# vectors of AVX-512, or stands right beside it, is let pass up to a number that this file alone cannot exceed. The Swift runtime
# has cmpxchg16b, as every 64-bit processor since 2006.
#
# Environment: INSTRUCTIONS=all reads all of it (a dozen seconds); by default sixteen pieces, a fifth.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '4s/^# //p' "${BASH_SOURCE[0]}" >&2; exit 2; }
read -r start size < <(objdump -h "$1" | awk '$2 == ".text" { print "0x" $4, "0x" $3 }')
pieces=16 first=64
[ "${INSTRUCTIONS:-}" = all ] && pieces=1 first=0
{
  for ((i = 0; i < pieces; i++)); do
    from=$((start + size / pieces * i))
    to=$((pieces == 1 ? start + size : from + size / 80))
    # (a piece begins amid an instruction: the first lines may be anything)
    objdump -d --no-show-raw-insn --start-address="$from" --stop-address="$to" "$1" | awk -F'\t' -v first=$first 'NF > 1 && ++n > first'
  done
} | awk -F'\t' '
  BEGIN {
    later = "^(haddp[sd]|hsubp[sd]|addsubp[sd]|movs[hl]dup|movddup|lddqu|fisttp.*|monitor|mwait|pshufb|palignr|pabs[bwd]|phadd.*|phsub.*|psign[bwd]|" \
      "pmulhrsw|pmaddubsw|p?blend.*|round[sp][sd]|dpp[sd]|insertps|extractps|pinsr[bdq]|pextr[bdq]|pmov[sz]x.*|pm(in|ax)(sb|sd|ud|uw)|" \
      "pmulld|pmuldq|pcmpeqq|pcmpgtq|packusdw|ptest|movntdqa|mpsadbw|phminposuw|crc32.*|popcnt.*|pcmp[ei]str.*|aes.*|pclmul.*|sha(1|256).*|" \
      "lzcnt.*|andn|bextr|bls[ir]|blsmsk|pdep|pext|bzhi|mulx|rorx|sarx|shlx|shrx|ad[co]x|movbe.*|rdrand|rdseed|xsave.*)$"
  }
  {
    lines++
    split($2, word, " ")
    name = word[1] == "lock" ? word[2] : word[1]
    wide = name ~ /^v[a-z]/ || $2 ~ /%[yz]mm|%k[0-7]/
    if (wide) {
      if ($2 ~ /%zmm|bf16/) { near = lines; allowed += held + 1; held = 0 }
      else if (lines - near < 300) allowed++
      else { if (!held) one = $0; held++; since = lines }
    } else if (name ~ later) { if (bad++ < 10) print "not in x86-64:", $0 }
    if (held && lines - since > 300) { print "AVX:", one; bad += held; held = 0 }
  }
  END {
    if (lines < 100000) { print "only", lines, "instructions were read"; exit 1 }
    if (allowed > 1000) { print allowed, "instructions of AVX-512"; exit 1 }
    exit bad + held > 0
  }'
