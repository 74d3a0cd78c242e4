-- Bodies that attract each other: arithmetic in compiled code, hardly any allocation.
local _, _, n = ...
local sqrt = math.sqrt

local bodies = {}
for i = 1, 6 do
  local a = i * 1.1
  bodies[i] = {
    x = a * math.cos(a), y = a * math.sin(a), z = 0.1 * i,
    vx = -math.sin(a) / i, vy = math.cos(a) / i, vz = 0.01 * i, mass = i == 1 and 40 or 0.01 * i,
  }
end

local function advance(dt)
  for i = 1, #bodies do
    local a = bodies[i]
    for j = i + 1, #bodies do
      local b = bodies[j]
      local dx, dy, dz = a.x - b.x, a.y - b.y, a.z - b.z
      local d2 = dx * dx + dy * dy + dz * dz + 0.01
      local force = dt / (d2 * sqrt(d2))
      local fa, fb = force * b.mass, force * a.mass
      a.vx, a.vy, a.vz = a.vx - dx * fa, a.vy - dy * fa, a.vz - dz * fa
      b.vx, b.vy, b.vz = b.vx + dx * fb, b.vy + dy * fb, b.vz + dz * fb
    end
  end
  for i = 1, #bodies do
    local a = bodies[i]
    a.x, a.y, a.z = a.x + dt * a.vx, a.y + dt * a.vy, a.z + dt * a.vz
  end
end

for _ = 1, tonumber(n or 1800000) do advance(0.001) end
return ("%.6f %.6f"):format(bodies[1].x, bodies[6].vy)
