"""What a traced program computes."""

import math

import jax
import jax.extend


def equations(jaxpr, times=1):
    """Every equation, and how often it is computed."""
    for equation in jaxpr.eqns:
        yield equation, times
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner, times * equation.params.get("length", 1))


def product_flops(function, *arguments):
    """Floating-point operations of the matrix products of a call."""
    counted = 0
    for equation, times in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = equation.invars[0].aval.shape
            counted += 2 * times * equation.outvars[0].aval.size * math.prod(sizes[a] for a in contracted)
    return counted
