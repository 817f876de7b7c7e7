import Glibc

/// z ← ∇(½|z|_p²) = sign(z)·|z|^(p−1)/|z|_p^(p−2): the mirror map of a p-norm, whose inverse has p/(p − 1). The largest
/// entry is taken out of the powers.
public func mirror(_ z: inout [Double], _ p: Double) {
  let top = z.reduce(0) { larger($0, abs($1)) }
  guard top > 0 || top.isNaN else { return }
  let norm = pow(z.reduce(0) { $0 + pow(abs($1) / top, p) }, (p - 2) / p)
  for i in z.indices { z[i] = signOf(z[i]) * (pow(abs(z[i]) / top, p - 1) / norm) * top }
}
