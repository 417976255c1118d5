"""The names of `general.file_type`: the mixes of formats a file can be quantized to, as llama.cpp numbers them."""

from collections.abc import Mapping

FILE_TYPES: Mapping[int, str] = {
    number: name
    for first, names in (
        (0, "F32 F16 Q4_0 Q4_1"),
        (7, "Q8_0 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ2_XXS IQ2_XS Q2_K_S IQ3_XS IQ3_XXS IQ1_S"),
        (25, "IQ4_NL IQ3_S IQ3_M IQ2_S IQ2_M IQ4_XS IQ1_M BF16"),
        (36, "TQ1_0 TQ2_0 MXFP4_MOE NVFP4 Q1_0"),
    )
    for number, name in enumerate(names.split(), first)
}
