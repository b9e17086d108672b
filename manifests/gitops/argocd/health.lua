-- How Argo CD sees a WebSocketCluster. Its conditions follow kstatus: Ready, and Reconciling or Stalled while true.
-- Without Argo CD's useOpenLibs: nothing but the language itself, ipairs and the like.
local status = obj.status or {}
local annotations = obj.metadata.annotations or {}
local said = {}
for _, condition in ipairs(status.conditions or {}) do
  if condition.status == "True" or condition.type == "Ready" then
    said[condition.type] = condition.message
  end
  if condition.type == "Ready" and condition.status == "True" then
    said.Healthy = condition.message
  end
end

if annotations["tableforge.io/paused"] == "true" then
  local hs = { status = "Suspended", message = "The annotation tableforge.io/paused holds the operator off." }
  if said.Ready ~= nil then
    hs.message = hs.message .. " When it last looked: " .. said.Ready
  end
  return hs
end
if status.observedGeneration ~= obj.metadata.generation then
  return { status = "Progressing", message = "The operator has yet to look at this change." }
end
if said.Stalled ~= nil then
  return { status = "Degraded", message = said.Stalled }
end
if said.Reconciling == nil and said.Healthy ~= nil then
  return { status = "Healthy", message = said.Healthy }
end
return { status = "Progressing", message = said.Reconciling or said.Ready or "The operator has said nothing yet." }
