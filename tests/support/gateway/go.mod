// The Gateway API, in the version that the Traefik of requirements.lock was built with; a test holds the two together.
// Nothing is built from it: its definitions of kinds are read from the module.
module tests/support/gateway

go 1.26.0

require sigs.k8s.io/gateway-api v1.6.3
