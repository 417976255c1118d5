// Every weight format as the kernels see it: a struct named like the format. Each kernel is a template over these.
//
// Block formats. A row is blocks of BLOCK elements in BYTES bytes; a block is UNITS units, the work of one lane at a time;
// a unit is PIECES pieces of 16 neighbouring elements, STEP elements apart, the first at element first(unit) of the block.
//   load(raw, block, unit)                      reads a unit's bytes into registers (nothing waits for them yet)
//   unpack(raw, unit, q, scale, minimum)        element i of piece p  =  scale[p] * (byte i of q[p], signed) - minimum[p]
// HALVES: pieces have scales of their own; otherwise both halves of 32 neighbouring elements share one.
// MINIMA: there are minima (else they are not touched). STEP == 16: a unit's two pieces are 32 neighbours under one scale.
//
// Plain numbers (FLOAT): load(raw, row, unit, k) and unpack(raw, v) of eight neighbouring elements.
#pragma once
#include "floats.cuh"
#include "iq.cuh"
#include "k_quants.cuh"
#include "legacy.cuh"

// Units of a row of k elements.
template <class F>
__device__ __forceinline__ int units_of_row(int k) {
    if constexpr (F::FLOAT)
        return (k + 7) / 8;
    else
        return k / F::BLOCK * F::UNITS;
}
