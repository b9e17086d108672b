"""Keys that tokens are checked with: a key, the one algorithm it counts for, and how texts become keys.

The algorithm belongs to the key and never comes from the token, so that no token can choose how it is judged.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any, Final

import jwt
import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from tableforge_dataplane.contract.auth import MIN_KEY_BYTES

MIN_RSA_BITS: Final = 2048
"""RFC 7518, 3.3."""

MAX_RSA_BITS: Final = 8192
"""Beyond it one signature costs milliseconds, and nobody uses such keys for tokens."""

MAX_KEYS: Final = 100
"""In one set; providers publish two to six."""

MAX_UNNAMED: Final = 4
"""Keys without a `kid`, or tried for a token without one: each try costs 0.1 to 1 ms."""

MAX_KID_CHARACTERS: Final = 512

RSA_ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})

_CURVES: Final = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

_JWK_TYPES: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
"""Which of PyJWT's classes reads a key of that type; the algorithm comes from the key itself."""

_PEM_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class KeyProblem(ValueError):  # noqa: N818 (it is told, not only raised)
    """Why a text holds no usable key: a sentence's end, without the text itself."""


@dataclasses.dataclass(frozen=True, slots=True)
class VerificationKey:
    """One key, usable with one algorithm."""

    algorithm: str
    material: Any = dataclasses.field(repr=False)
    """Bytes for HS*, else a public key of `cryptography`."""
    kid: str | None = None


def shared_key(text: str, algorithm: str) -> VerificationKey:
    """The key of HS*. Raises KeyProblem."""
    try:
        jwt.get_algorithm_by_name(algorithm).prepare_key(text)
    except jwt.InvalidKeyError:
        # whoever signs with a public key's text as the shared key could be anybody: that text is public
        raise KeyProblem(
            f"holds a PEM, SSH or JSON Web Key, and {algorithm} needs a shared random one"
        ) from None
    least = MIN_KEY_BYTES[algorithm]
    if len(text.encode()) < least:
        raise KeyProblem(f"holds a key of {len(text.encode())} bytes, and {algorithm} needs {least} at least")
    return VerificationKey(algorithm, text.encode())


def public_keys(text: str, *, rsa_algorithm: str) -> tuple[VerificationKey, ...]:
    """The keys of a file: PEM blocks, or a JWK Set. All of them have to be usable. Raises KeyProblem."""
    if text.lstrip().startswith("{"):
        keys, refused = keys_of_set(text.encode(), rsa_algorithm=rsa_algorithm)
        if refused:
            raise KeyProblem(f"holds a JWK Set in which {refused[0]}")
    else:
        keys = tuple(_of_pem(text, rsa_algorithm))
    if sum(key.kid is None for key in keys) > MAX_UNNAMED:
        raise KeyProblem(
            f"holds more than {MAX_UNNAMED} keys without a name: use a JWK Set, whose keys have a `kid`"
        )
    return keys


def _of_pem(text: str, rsa_algorithm: str) -> Iterable[VerificationKey]:
    blocks = list(_PEM_BLOCK.finditer(text))
    if not blocks:
        raise KeyProblem("holds neither PEM blocks nor a JWK Set")
    for block in blocks:
        if "PRIVATE" in block[1]:
            raise KeyProblem(
                "holds a private key, which belongs to whoever signs tokens and to nobody else: "
                "put the public one there (openssl pkey -pubout)"
            )
        try:
            if block[1] == "CERTIFICATE":
                material: Any = x509.load_pem_x509_certificate(block[0].encode()).public_key()
            else:
                material = load_pem_public_key(block[0].encode())
        except (ValueError, UnsupportedAlgorithm):
            raise KeyProblem(f"holds a {block[1]} block that cannot be read") from None
        yield VerificationKey(_algorithm_of(material, rsa_algorithm), material)


def keys_of_set(
    document: bytes, *, rsa_algorithm: str
) -> tuple[tuple[VerificationKey, ...], tuple[str, ...]]:
    """The usable keys of a JWK Set, and a sentence's end for each that isn't; those for encryption are passed
    over. Raises KeyProblem where it is no JWK Set."""
    try:
        found = msgspec.json.decode(document)
    except (msgspec.DecodeError, RecursionError):
        raise KeyProblem("is no JSON") from None
    entries = found.get("keys") if isinstance(found, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise KeyProblem("is no JWK Set: it must be an object with a list `keys`")
    if len(entries) > MAX_KEYS:
        raise KeyProblem(f"has {len(entries)} keys, {MAX_KEYS} are allowed")
    keys: list[VerificationKey] = []
    refused: list[str] = []
    for position, jwk in enumerate(entries):
        operations = jwk.get("key_ops", ["verify"])
        if jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
            continue
        try:
            keys.append(_of_jwk(jwk, rsa_algorithm))
        except KeyProblem as problem:
            refused.append(f"key {position + 1} {problem}")
    return tuple(keys), tuple(refused)


def _of_jwk(jwk: dict[str, Any], rsa_algorithm: str) -> VerificationKey:
    kid, kind, alg = jwk.get("kid"), jwk.get("kty"), jwk.get("alg")
    if kid is not None and not (isinstance(kid, str) and 1 <= len(kid) <= MAX_KID_CHARACTERS):
        raise KeyProblem(f"has a `kid` that isn't a string of 1 to {MAX_KID_CHARACTERS} characters")
    if kind == "oct" or "d" in jwk or "k" in jwk:
        raise KeyProblem("is private or shared, and is known to whoever can read this set")
    if not isinstance(kind, str) or kind not in _JWK_TYPES:
        raise KeyProblem("is of a type that isn't RSA, EC or OKP")
    try:
        material = jwt.get_algorithm_by_name(_JWK_TYPES[kind]).from_jwk(jwk)
    except (jwt.InvalidKeyError, ValueError, TypeError, AttributeError):
        # PyJWT answers members of the wrong type with whatever they trip over
        raise KeyProblem("cannot be read") from None
    if kind == "RSA" and isinstance(alg, str) and alg in RSA_ALGORITHMS:
        rsa_algorithm = alg
    algorithm = _algorithm_of(material, rsa_algorithm)
    if alg is not None and alg != algorithm:
        raise KeyProblem(f"has an `alg` that is not one for such a key, as {algorithm} would be")
    return VerificationKey(algorithm, material, kid)


def _algorithm_of(material: Any, rsa_algorithm: str) -> str:
    if isinstance(material, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= material.key_size <= MAX_RSA_BITS:
            raise KeyProblem(
                f"is an RSA key of {material.key_size} bits: {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted"
            )
        return rsa_algorithm
    if isinstance(material, ec.EllipticCurvePublicKey):
        if material.curve.name not in _CURVES:
            raise KeyProblem("is on a curve that isn't P-256, P-384 or P-521")
        return _CURVES[material.curve.name]
    if isinstance(material, (ed25519.Ed25519PublicKey, ed448.Ed448PublicKey)):
        return "EdDSA"
    raise KeyProblem("is of a kind that isn't RSA, elliptic curve, Ed25519 or Ed448")
