"""The paper's experiments: commands that run from a checkout, on jaxsteer and weights.

Rooms, each of which uses only those above it:

    problems     templates of reasoning problems
    judges       labels of sentences, by keywords or a language model
    pipeline     what stages share: settings, the run's folder, formats of prompts
    stages       rollouts, label, derive, steer, perplexity, tokens, and what their rows say
    figures      Figures 2 to 6, the headline plot, cosines, Appendix C
    claims       the rules of the claims table, and what they rest on
    searches     directions found otherwise: learned, several, of stable events; sensitivities
    grafting     which fine-tuned parts the direction needs
    report       every figure, the claims table, the report, the page
    small_pair   the judgement of a trained small pair
    decoding     decoding loops built from the library's public pieces
    benchmarks   measurements; their results are in RESULTS.md

Modules of some rooms run alone under short names, as `python -m experiments.rollouts` for
`experiments.stages.rollouts`; code imports them by their full names.
"""

_COMMANDS = ("judges", "stages", "figures", "claims", "searches", "grafting")
__path__ += [f"{__path__[0]}/{room}" for room in _COMMANDS]
