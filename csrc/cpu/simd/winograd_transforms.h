// The one-dimensional transforms of Winograd's F(2, 3) and F(4, 3) (Lavin and Gray 2015, arXiv:1509.09308, sections
// 4.1 and 4.2), a register of channels at a time:
//     y = A^T ((G g) . (B^T d)),    and transposed for the gradient:    dg = G^T ((A dy) . (B^T d)).
// V is an instruction set's Vector.
#pragma once

namespace resnet_fused::cpu::simd {
namespace {

template <typename V>
struct Arithmetic {
  using Reg = typename V::Reg;
  static inline Reg add(Reg a, Reg b) { return a + b; }
  static inline Reg sub(Reg a, Reg b) { return a - b; }
  static inline Reg mul(float a, Reg b) { return V::set1(a) * b; }
  static inline Reg add_scaled(Reg to, float a, Reg b) { return V::fmadd(V::set1(a), b, to); }
};

// Input and output transforms only add, so it is as accurate as the direct form.
template <typename V>
struct F2x3 : Arithmetic<V> {
  using typename Arithmetic<V>::Reg;
  using Arithmetic<V>::add, Arithmetic<V>::sub, Arithmetic<V>::mul, Arithmetic<V>::add_scaled;
  static constexpr int kOut = 2;   // outputs per tile along one axis
  static constexpr int kTile = 4;  // inputs per tile, and transformed values
  using Weight = double;           // type of G g: each weight is rounded once

  // B^T d
  static inline void input(const Reg (&d)[4], Reg (&v)[4]) {
    v[0] = sub(d[0], d[2]);
    v[1] = add(d[1], d[2]);
    v[2] = sub(d[2], d[1]);
    v[3] = sub(d[1], d[3]);
  }

  // A^T m
  static inline void output(const Reg (&m)[4], Reg (&y)[2]) {
    y[0] = add(add(m[0], m[1]), m[2]);
    y[1] = sub(sub(m[1], m[2]), m[3]);
  }

  // G g
  static inline void filter(const Weight (&g)[3], Weight (&u)[4]) {
    u[0] = g[0];
    u[1] = (g[0] + g[1] + g[2]) / 2;
    u[2] = (g[0] - g[1] + g[2]) / 2;
    u[3] = g[2];
  }

  // A dy
  static inline void grad(const Reg (&dy)[2], Reg (&m)[4]) {
    m[0] = dy[0];
    m[1] = add(dy[0], dy[1]);
    m[2] = sub(dy[0], dy[1]);
    m[3] = sub(V::zero(), dy[1]);
  }

  // G^T u
  static inline void filter_grad(const Reg (&u)[4], Reg (&dg)[3]) {
    const Reg even = mul(.5f, add(u[1], u[2]));
    dg[0] = add(u[0], even);
    dg[1] = mul(.5f, sub(u[1], u[2]));
    dg[2] = add(even, u[3]);
  }
};

// Points 0, 1, -1, 2, -2 and infinity. Loses three or four bits of float32, so only for tensors with 8-bit
// significands.
template <typename V>
struct F4x3 : Arithmetic<V> {
  using typename Arithmetic<V>::Reg;
  using Arithmetic<V>::add, Arithmetic<V>::sub, Arithmetic<V>::mul, Arithmetic<V>::add_scaled;
  static constexpr int kOut = 4;
  static constexpr int kTile = 6;
  using Weight = float;

  static inline void input(const Reg (&d)[6], Reg (&v)[6]) {
    v[0] = add_scaled(add_scaled(d[4], -5, d[2]), 4, d[0]);
    const Reg even = add_scaled(d[4], -4, d[2]), odd = add_scaled(d[3], -4, d[1]);
    v[1] = add(even, odd);
    v[2] = sub(even, odd);
    const Reg even2 = sub(d[4], d[2]), odd2 = sub(d[3], d[1]);
    v[3] = add_scaled(even2, 2, odd2);
    v[4] = add_scaled(even2, -2, odd2);
    v[5] = add_scaled(add_scaled(d[5], -5, d[3]), 4, d[1]);
  }

  static inline void output(const Reg (&m)[6], Reg (&y)[4]) {
    const Reg sum1 = add(m[1], m[2]), difference1 = sub(m[1], m[2]);
    const Reg sum2 = add(m[3], m[4]), difference2 = sub(m[3], m[4]);
    y[0] = add(add(m[0], sum1), sum2);
    y[1] = add_scaled(difference1, 2, difference2);
    y[2] = add_scaled(sum1, 4, sum2);
    y[3] = add_scaled(add(difference1, m[5]), 8, difference2);
  }

  static inline void filter(const Weight (&g)[3], Weight (&u)[6]) {
    u[0] = g[0] / 4;
    u[1] = (g[0] + g[1] + g[2]) * (-1.f / 6);
    u[2] = (g[0] - g[1] + g[2]) * (-1.f / 6);
    u[3] = (g[0] + 2 * g[1] + 4 * g[2]) * (1.f / 24);
    u[4] = (g[0] - 2 * g[1] + 4 * g[2]) * (1.f / 24);
    u[5] = g[2];
  }

  static inline void grad(const Reg (&dy)[4], Reg (&m)[6]) {
    m[0] = dy[0];
    const Reg even = add(dy[0], dy[2]), odd = add(dy[1], dy[3]);
    m[1] = add(even, odd);
    m[2] = sub(even, odd);
    const Reg even2 = add_scaled(dy[0], 4, dy[2]), odd2 = add_scaled(dy[1], 4, dy[3]);
    m[3] = add_scaled(even2, 2, odd2);
    m[4] = add_scaled(even2, -2, odd2);
    m[5] = dy[3];
  }

  static inline void filter_grad(const Reg (&u)[6], Reg (&dg)[3]) {
    const Reg sum1 = add(u[1], u[2]), sum2 = add(u[3], u[4]);
    dg[0] = add_scaled(add_scaled(mul(1.f / 4, u[0]), -1.f / 6, sum1), 1.f / 24, sum2);
    dg[1] = add_scaled(mul(1.f / 6, sub(u[2], u[1])), 1.f / 12, sub(u[3], u[4]));
    dg[2] = add_scaled(u[5], 1.f / 6, sub(sum2, sum1));
  }
};

}  // namespace
}  // namespace resnet_fused::cpu::simd
